"""Write the page of one run or several: curves, traces, the answer's tokens, config. Also while a run goes on.

python -m launch.report runs/mine                         writes runs/mine/report.html
python -m launch.report runs/a runs/b --output both.html  two runs in one page
"""

import dataclasses
from pathlib import Path

import tyro

from launch import cli
from nrt_jax import report
from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """A page.

    Attributes:
        runs: Folders of runs.
        output: HTML file to write; `report.html` in the first run's folder when empty.
        max_traces: Most traces in it, of all runs together; above it, questions are left out evenly.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    output: str = ""
    max_traces: int = report.MAX_TRACES


def main(config: ReportConfig) -> None:
    """Reads the folders and writes the page."""
    if not config.runs:
        raise UserError("RUNS: none; expected one run's folder or more")
    if config.max_traces < 1:
        raise UserError(f"max_traces: {config.max_traces} cannot work; expected a number above 0")
    output = Path(config.output) if config.output else Path(config.runs[0]) / report.REPORT_FILE
    try:
        report.write_report(config.runs, output, max_traces=config.max_traces)
    except OSError as error:
        raise UserError(
            f"output: cannot write {str(output)!r}: {error.strerror or error}; choose another file"
        ) from error
    print(f"written to {output}")


if __name__ == "__main__":
    cli.run(main, ReportConfig, "python -m launch.report", __doc__)
