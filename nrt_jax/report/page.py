"""The page itself: template, style and scripts of this package with the runs' data in it, one file without a network.

What a policy writes is untrusted: it stands in the page as JSON in which no character can end the script element, the
scripts put it on the screen as text, and the page's own policy lets nothing run or load but the two inline blocks whose
hashes it names.
"""

import base64
import hashlib
import html
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

from nrt_jax import __version__
from nrt_jax.report.data import read_run

REPORT_FILE = "report.html"
MAX_TRACES = 1000  # Of all runs of a page: about a megabyte.

_FILES = pathlib.Path(__file__).parent
_SCRIPTS = ("common.js", "charts.js", "traces.js", "page.js")
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def write_report(
    folders: Sequence[str | os.PathLike], output: str | os.PathLike, *, max_traces: int = MAX_TRACES
) -> None:
    """Writes the page of one run or several, which appears whole or not at all.

    Args:
        folders: Of the runs, finished or not.
        output: The file; an old one is replaced.
        max_traces: Most traces, of all runs together.

    Raises:
        UserError: A folder is no run's, or a file in it is broken.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    runs = {name: read_run(path, max_traces // len(paths)) for name, path in zip(_names(paths), paths, strict=True)}
    output = pathlib.Path(output)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    try:
        partial.write_text(render(runs), encoding="utf-8")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def render(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of runs by name, each as `read_run` returns it."""
    data = json.dumps({"runs": [{"name": name, **run} for name, run in runs.items()]}, allow_nan=False)
    script = "\n".join((_FILES / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    style = (_FILES / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return string.Template((_FILES / "template.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(", ".join(runs)),
        version=html.escape(__version__),
        policy=html.escape(policy, quote=False),
        style=style,
        data=data.translate(_ESCAPES),
        script=script,
    )


def _hash(text: str) -> str:
    """A source of a content security policy: an inline block with just this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]  # One folder twice.
