"""Fuzzes every reader of files that others make.

python -m tests.soak.fuzz [--cases 10000] [--first 0] [--only NAME ...]

A case is a mutation of valid input (tests/hostile.py). A reader refuses it by a UserError or accepts it with a right
result (tests/hostile_readers.py); whatever else happens is a failure, printed with the number of its case. Each reader
has a process of its own: one that dies fails.
"""

import argparse
import collections
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.hostile import Target
from tests.hostile_readers import READERS

SHOWN = 3  # failures of a kind that are printed
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None  # each case writes a file


def main() -> int:
    """Prints the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", nargs="*", default=[], help="parts of readers' names")
    args = parser.parse_args()
    print("| reader | cases | refused | accepted | failures | seconds |\n|---|---|---|---|---|---|", flush=True)
    failed = 0
    for reader in READERS:
        if args.only and not any(part in reader.name for part in args.only):
            continue
        started = time.monotonic()
        counts = apart(reader.name, range(args.first, args.first + args.cases))
        row = " | ".join(str(counts.get(name, 0)) for name in ("cases", "refused", "accepted", "failures"))
        died = f" (process died: {counts['died']})" if "died" in counts else ""
        print(f"| {reader.name} | {row}{died} | {time.monotonic() - started:.0f} |", flush=True)
        failed += counts.get("failures", 0)
    return 1 if failed else 0


def apart(name: str, cases: range) -> dict[str, int]:
    """`fuzz` in a process of its own. Nothing ran in this one yet, so that a fork is whole and saves the imports."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(fuzz, (name, cases))
        worker = pool._pool[0]
        while not result.ready() and worker.is_alive():
            result.wait(1)
        return result.get() if result.ready() else {"failures": 1, "died": worker.exitcode}


def fuzz(name: str, cases: range) -> dict[str, int]:
    """Runs one reader's cases."""
    reader = next(reader for reader in READERS if reader.name == name)
    counts, shown = collections.Counter(), collections.Counter()
    with (
        tempfile.TemporaryDirectory(dir=SCRATCH) as folder,
        open(os.devnull, "w") as null,  # noqa: PTH123
        contextlib.redirect_stderr(null),
    ):
        target = Target(reader, Path(folder) / "target")
        for case in cases:
            counts["cases"] += 1
            try:
                counts["accepted" if target.accepts(case) else "refused"] += 1
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a library's panic is no Exception
                counts["failures"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                shown[kind] += 1
                if shown[kind] <= SHOWN:
                    file, data = target.mutated(case)
                    print(f"FAILED {name}, case {case}: {kind}: {str(error)[:200]!r} {file} {data[:300]!r}", flush=True)
    return dict(counts)


if __name__ == "__main__":
    sys.exit(main())
