"""Hostile files by the thousand: `python tests/fuzz.py --cases 20000 --seed 0`.
Every case ends in success or in a ValueError or OSError of one line that names the file; anything else is a bug."""

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import fuzz_files  # noqa: E402
import fuzz_readers  # noqa: E402

SLOWEST, MEMORY = 5.0, 1.5e9  # seconds of the processor for a case; bytes of the process above what it had at the start


def check_error(error: Exception, path: Path) -> str:
    """What is wrong with an error; empty where it is as it should be."""
    if not isinstance(error, ValueError | OSError):
        return f"{type(error).__name__}, expected ValueError or OSError"
    text = str(error)
    if isinstance(error, OSError) and error.filename:  # as runs.one_line_errors prints it
        text = text.replace(str(error.filename), str(error.filename)[:300])
    if len(text.splitlines()) != 1 or len(text) > 600:
        return f"{len(text.splitlines())} lines of {len(text)} characters, expected one line"
    return "" if str(path.parent) in text or isinstance(error, OSError) else "does not name the file"


def run_case(kind: str, seed: str, folder: Path) -> tuple[str, str]:
    """One case of a kind -> ("success", "refused" or "BUG", what went wrong)."""
    rng = random.Random(f"{kind} {seed}")
    suffix, make = fuzz_files.KINDS[kind]
    path = folder / f"case{suffix}"
    path.write_bytes(make(rng))
    start = time.process_time()  # of this process, however busy the machine is
    try:
        fuzz_readers.READERS[kind](path, rng)
        wrong, outcome = "", "success"
    except Exception as error:
        wrong, outcome = check_error(error, path), "refused"
        if wrong:
            wrong += f": {str(error)[:300]!r}\n" + "".join(traceback.format_tb(error.__traceback__)[-3:])
    seconds = time.process_time() - start
    if seconds > SLOWEST:
        wrong += f" took {seconds:.1f} s, expected at most {SLOWEST:g}"
    return ("BUG", wrong) if wrong else (outcome, "")


def peak() -> int:
    """The largest resident set so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(cases: int, seed: int, kinds: list[str]) -> tuple[Counter, list[str]]:
    """Runs cases of each kind in turn -> counts of (kind, outcome), a text for each bug."""
    counts, bugs, before = Counter(), [], peak()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            kind = kinds[number % len(kinds)]
            outcome, wrong = run_case(kind, f"{seed} {number}", Path(folder))
            counts[kind, outcome] += 1
            grown = peak() - before
            if grown > MEMORY:
                wrong, before = f"memory grew by {grown / 1e9:.2f} GB, expected at most {MEMORY / 1e9:g}", peak()
            if wrong:
                bugs.append(f"{kind}, --seed {seed} case {number}: {wrong}")
    return counts, bugs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(fuzz_files.KINDS), default=sorted(fuzz_files.KINDS))
    parser.add_argument("--shown", type=int, default=20, help="bugs that are printed")
    arguments = parser.parse_args()
    start = time.perf_counter()
    counts, bugs = fuzz(arguments.cases, arguments.seed, arguments.kinds)
    for kind in arguments.kinds:
        print(f"{kind:12}", *(f"{counts[kind, outcome]:>7} {outcome}" for outcome in ("success", "refused", "BUG")))
    print(
        f"{arguments.cases} cases in {time.perf_counter() - start:.0f} s, {len(bugs)} bugs, peak {peak() / 1e9:.2f} GB"
    )
    print("\n".join(bugs[: arguments.shown]))
    sys.exit(bool(bugs))


if __name__ == "__main__":
    main()
