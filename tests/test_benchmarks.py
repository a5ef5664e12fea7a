"""The benchmark of a GPU, at toy size on whatever there is."""

import json
import subprocess
import sys

from conftest import ROOT


def test_all_parts_run_and_what_is_exact_is_so(tmp_path):
    found = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--toy", "--json", found]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    rows = json.loads(found.read_text())["rows"]
    assert {row["part"] for row in rows if row["name"] == "the whole part"} == {1, 2, 3, 4}
    assert all(row["met"] for row in rows if row["part"] == 1 and row["aim"])
