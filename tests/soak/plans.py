"""Plans every shipped recipe on its topologies and prints the table of docs/planning.md.

python -m tests.soak.plans [NAME ..] [--search False]    an hour or two of two cores; needs libtpu (the extra `tpu`)

A recipe says in its docstring's first line where it runs: `... on v5e:4x4 and v5p:2x2x1, ...`.
"""

import ast
import re
import subprocess
import sys
import time

from launch import cli

_TOPOLOGY = re.compile(r"\bv\d\w*:\d+(?:x\d+)+")
_FIGURES = {
    "peak": re.compile(r"^most memory at once: (.*) GiB, (.*)$", re.MULTILINE),
    "step": re.compile(r"^a step takes at least (\S+) s", re.MULTILINE),
    "micro_batch": re.compile(r"^largest micro-batch that fits: (.*)$", re.MULTILINE),
}


def recipes() -> list[tuple[str, str]]:
    """(recipe, topology) of all shipped recipes."""
    files = sorted(cli.CONFIGS_FOLDER.glob("nrt_*.py"))
    first_lines = {f.stem: ast.get_docstring(ast.parse(f.read_text())).splitlines()[0] for f in files}
    return [(name, topology) for name, line in first_lines.items() for topology in _TOPOLOGY.findall(line)]


def main(args: list[str]) -> int:
    """Prints each plan, then all of them as a table; returns 1 if one does not fit."""
    first = next((i for i, arg in enumerate(args) if arg.startswith("--")), len(args))
    names, flags = args[:first], args[first:]  # What launch.plan takes.
    rows, codes = [], []
    for name, topology in recipes():
        if names and name not in names:
            continue
        command = [sys.executable, "-m", "launch.plan", "--config", name, "--topology", topology, *flags]
        started = time.time()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"$ {' '.join(command[1:])}\n{done.stdout}{done.stderr}", flush=True)
        found = {key: pattern.search(done.stdout) for key, pattern in _FIGURES.items()}
        figures = [" ".join(match.groups()) if match else "-" for match in found.values()]
        fits = ("yes" if done.returncode == 0 else "no") if found["peak"] else "error"  # A traceback's code is 1, too.
        rows.append((name, topology, fits, *figures, f"{time.time() - started:.0f}"))
        codes.append(done.returncode)
    print("| recipe | topology | fits | most GiB | step at least, s | largest micro-batch | planned in, s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
