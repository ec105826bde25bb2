"""Fuzzes every reader of files that others make.

python -m tests.soak.fuzz [--cases 10000] [--seed 0] [--only NAME ...]

A case is a mutation of valid input (tests/hostile.py). A reader refuses it by a UserError or accepts it with a right
result (tests/hostile_readers.py); whatever else happens is a failure, printed with the file that made it. Each reader
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

SHOWN = 3  # failures of a kind that are printed


def main() -> int:
    """Prints the table; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of readers' names")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from tests.hostile_readers import READERS

    print("| reader | cases | refused | accepted | failures | seconds |\n|---|---|---|---|---|---|", flush=True)
    failed = 0
    for reader in READERS:
        if args.only and not any(part in reader.name for part in args.only):
            continue
        started = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result = pool.apply_async(fuzz, (reader.name, args.cases, args.seed))
            worker = pool._pool[0]
            while not result.ready() and worker.is_alive():
                result.wait(1)
            counts = result.get() if result.ready() else {"failures": 1, "died": worker.exitcode}
        row = " | ".join(str(counts.get(name, 0)) for name in ("cases", "refused", "accepted", "failures"))
        died = f" (process died: {counts['died']})" if "died" in counts else ""
        print(f"| {reader.name} | {row}{died} | {time.monotonic() - started:.0f} |", flush=True)
        failed += counts.get("failures", 0)
    return 1 if failed else 0


def fuzz(name: str, cases: int, seed: int) -> dict[str, int]:
    """Runs one reader's cases, in a process of their own."""
    import hypothesis

    from tests.hostile import Target
    from tests.hostile_readers import READERS

    reader = next(reader for reader in READERS if reader.name == name)
    counts, shown = collections.Counter(), collections.Counter()
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(open(os.devnull, "w")):  # noqa: PTH123
        target = Target(reader, Path(folder) / "target")

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(reader.cases())
        def run(case):
            counts["cases"] += 1
            try:
                counts["accepted" if target.accepts(case) else "refused"] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                counts["failures"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
                shown[kind] += 1
                if shown[kind] <= SHOWN:
                    print(
                        f"FAILED {name}: {kind}: {str(error)[:200]!r} {case[0]} {target.mutated(case)[:300]!r}",
                        flush=True,
                    )

        run()
    return dict(counts)


if __name__ == "__main__":
    sys.exit(main())
