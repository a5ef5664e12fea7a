"""All attacks, one after the other, as a table: `python tests/attacks.py`, some two hours, of which
one is the soak.  --share 0.01: so many of each, to try it out."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ATTACKS = (  # what, how many, of what, the command
    ("hostile files, mutated and generated", 20_000, "files", "fuzz.py --seed 0 --cases"),
    ("trainings killed at random moments", 50, "kills", "power_cut.py --kills"),
    ("two processes and their launcher", 14, "kills", "power_cut.py --processes 2 --kills"),
    ("commands killed at system calls", 62, "kills", "system_calls.py --kills"),
    ("a training that goes on", 60, "minutes", "soak.py --minutes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1)
    share = parser.parse_args().share
    print("| attack | count | result | minutes |\n|---|---:|---|---:|", flush=True)
    failed = False
    for attack, most, unit, command in ATTACKS:
        count, start = max(1, round(most * share)), time.monotonic()
        words = [sys.executable, *f"{FOLDER}/{command} {count}".split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        failed |= done.returncode != 0
        result = (done.stdout or done.stderr).splitlines()[-1]
        minutes = (time.monotonic() - start) / 60
        print(f"| {attack} | {count:,} {unit} | {result} | {minutes:.1f} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
