"""A run's numbers: `metrics.jsonl`, TensorBoard, and a progress line with the time left.

A record is fetched from the device one step late: `write` only starts the copy to the host, and the next
step's `write` (or `flush`) converts it. The host thus runs ahead and the device never waits for it.
"""

import collections
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import jax.monitoring
import numpy as np
import rich.console
import rich.progress

from nrt_jax.errors import UserError
from nrt_jax.training.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
SAMPLED_TOKENS = "sampled_tokens"  # The metric that tokens/s counts.
PACE_STEPS = 20  # Steps over which it does.
#: What the progress line calls metrics, which a terminal has little room for.
LABELS = {
    "reward_gain": "gain",
    "answer_prob": "p(answer)",
    "trace_length": "length",
    "empty_trace_share": "empty",
    "gradient_norm": "|gradient|",
}
_COMPILED = "/jax/core/compile/backend_compile_duration"  # Recorded once a program, whether or not the cache had it.


class MetricsWriter:
    """Writes one record a step under `workdir`.

    A line of `metrics.jsonl` is `{"step": int, "time": seconds since the epoch, name: number or null, ...}`;
    null stands for a number that is not finite. In a run of several processes the first one writes.

    So that no record is lost between a checkpoint and a crash, call `flush(sync=True)` before saving one, and save
    `last` with it. A resumed run calls `resume` with both before its first write.

    Attributes:
        path: the file of records.
        last: the last record that was written, or None.
        wandb: a run of Weights & Biases that gets the numbers, too, and is finished with this writer; or None.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int | None = None,
        show: Sequence[str] = (),
        interval: float = 10.0,
        stream: TextIO | None = None,
    ):
        """Opens nothing yet: files appear with the first record.

        Args:
            workdir: the run's folder.
            total_steps: the last step, for the time left.
            show: names of the metrics in the progress line.
            interval: seconds between progress lines where the stream is no terminal.
            stream: where progress goes; standard error when None.
        """
        self.path = pathlib.Path(workdir) / METRICS_FILE
        self.last: dict[str, Any] | None = None
        self.wandb: Any = None
        self._started = time.time()
        self._tensorboard_folder = pathlib.Path(workdir) / "tensorboard"
        self._tensorboard: EventFile | None = None
        self._purge_step: int | None = None
        self._writes = jax.process_index() == 0
        self._progress = Progress(total_steps, show, interval, stream or sys.stderr) if self._writes else None
        self._pending: tuple[int, float, dict[str, Any]] | None = None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the scalars of a step, arrays on the device or plain numbers.

        A second call for the same step adds to its record.
        """
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        if self._pending is not None and self._pending[0] == step:
            self._pending[2].update(metrics)
            return
        self.flush()
        self._pending = (step, time.time(), dict(metrics))

    def flush(self, *, sync: bool = False) -> None:
        """Waits for the pending record and writes it; with `sync`, waits until the disk has all records."""
        if self._pending is not None:
            self._write_pending()
        if sync and self.path.exists() and self._writes:
            with self.path.open("a") as file:
                os.fsync(file.fileno())

    def _write_pending(self) -> None:
        (step, now, metrics), self._pending = self._pending, None
        numbers = {name: np.asarray(value).item() for name, value in metrics.items()}
        self.last = {"step": step, "time": now} | {name: _finite(value) for name, value in numbers.items()}
        if not self._writes:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.last, allow_nan=False) + "\n")
        self._events().write(step, now, numbers)
        if self.wandb is not None:
            self.wandb.log(numbers, step=step)
        self._progress.update(step, max(now, self._started), numbers)

    def write_sample(self, step: int, histograms: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
        """Takes values of a step to be counted, and texts in Markdown; both are for TensorBoard alone.

        Those of the step at which a run is resumed are lost there: it hides what was logged from that step on.
        """
        if self._writes:
            self._events().write_sample(step, histograms, texts)

    def _events(self) -> EventFile:
        if self._tensorboard is None:
            self._tensorboard = EventFile(self._tensorboard_folder, self._purge_step)
        return self._tensorboard

    def resume(self, step: int, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Goes on after `step`: later records are dropped, and a last line that a crash left half written.

        Args:
            step: that of the checkpoint; 0 for none.
            record: that step's `last`, saved with it. It becomes the pending one again, so that `write` can add to it.

        Returns:
            The records that stand, without that one.
        """
        kept = step if record is None else step - 1
        self._purge_step = kept + 1  # TensorBoard hides what an earlier run logged from here on
        if record is not None:
            numbers = {name: math.nan if value is None else value for name, value in record.items()}
            self._pending = (numbers.pop("step"), numbers.pop("time"), numbers)
        if self._writes:
            truncate_records(self.path, kept)
        return [found for found in read_metrics(self.path) if found["step"] <= kept] if self.path.exists() else []

    def close(self) -> None:
        """Writes what is pending and closes the files and the progress line."""
        self.flush()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self._progress is not None:
            self._progress.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the records of `metrics.jsonl`; a last line without its end, left by a crash, is passed over.

    Raises:
        UserError: A whole line is no record; names file and line.
    """
    lines = pathlib.Path(path).read_bytes().splitlines(keepends=True)
    return [
        _record(line, f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.endswith(b"\n") and line.strip()
    ]


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not JSON ({error}); remove that line to go on") from error
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise UserError(f"{where}: has no whole number 'step'; expected a run's record, remove that line to go on")
    return record


def truncate_records(path: pathlib.Path, step: int) -> None:
    """Drops the lines of steps beyond `step` from a file of records, which may be absent."""
    if path.exists():
        partial = path.with_name(path.name + ".partial")
        kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)


class Progress:
    """The live line of a run: step, chosen metrics, time left; a bar on a terminal, else a line now and then.

    The time left goes by the pace since the first step that was seen, so that compiling does not count.
    """

    def __init__(self, total_steps: int | None, show: Sequence[str], interval: float, stream: TextIO):
        """Shows nothing before the first `update`; the arguments are those of `MetricsWriter`."""
        self._total = total_steps
        self._show = show
        self._interval = interval
        self._stream = stream
        self._first: tuple[int, float] | None = None
        self._last_line = -math.inf
        self._shown: dict[str, float] = {}
        self._pace: collections.deque[tuple[float, float]] = collections.deque(maxlen=PACE_STEPS)
        self._bar: rich.progress.Progress | None = None

    def update(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
        """Shows a step.

        Args:
            step: its number, counted from the start of the run.
            now: when it was dispatched, in seconds.
            numbers: its metrics. A shown one that is not among them, as an evaluation's, stays as it was.
        """
        self._first = self._first or (step, now)
        self._shown |= {name: numbers[name] for name in self._show if name in numbers}
        if SAMPLED_TOKENS in numbers:
            self._pace.append((now, numbers[SAMPLED_TOKENS]))
        if self._stream.isatty():
            self._update_bar(step, now)
        elif now - self._last_line >= self._interval or step == self._total:
            self._last_line = now
            print(f"step {self.line(step, now)}", file=self._stream, flush=True)

    def line(self, step: int, now: float) -> str:
        """Returns such as `30/50  reward 0.412  accuracy 0.75  5,120 tokens/s  1:05 left`."""
        metrics = [f"{LABELS.get(name, name)} {self._shown[name]:.4g}" for name in self._show if name in self._shown]
        count = str(step) if self._total is None else f"{step}/{self._total}"
        return "  ".join([count, *metrics, *self._tokens_per_second(), *self._time_left(step, now)])

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def _update_bar(self, step: int, now: float) -> None:
        if self._bar is None:
            text, bar = rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn()
            self._bar = rich.progress.Progress(bar, text, console=rich.console.Console(file=self._stream))
            self._bar.add_task("", total=self._total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, description=f"step {self.line(step, now)}")

    def _tokens_per_second(self) -> list[str]:
        """Of the last steps, everything that a step does included; the first one's tokens came before the clock."""
        if len(self._pace) < 2 or self._pace[-1][0] <= self._pace[0][0]:
            return []
        tokens = sum(num for _, num in list(self._pace)[1:])
        return [f"{tokens / (self._pace[-1][0] - self._pace[0][0]):,.0f} tokens/s"]

    def _time_left(self, step: int, now: float) -> list[str]:
        first_step, first_time = self._first
        if self._total is None or step <= first_step:
            return []
        seconds = round((now - first_time) / (step - first_step) * max(self._total - step, 0))
        hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
        return [f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"]


class CompilationCounter:
    """Counts the programs that this process compiles, or loads from JAX's cache, while it is entered.

    A count that still grows late in a run means shapes that keep changing.

    Attributes:
        count: Programs so far, those of single operations included.
    """

    def __init__(self):
        """Starts at 0."""
        self.count = 0

    def __enter__(self) -> "CompilationCounter":
        """Begins to count."""
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception) -> None:
        """Ends the count."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, *_, **__) -> None:
        self.count += event == _COMPILED


def _finite(value: float) -> float | None:
    """JSON has no word for infinity or nan."""
    return value if math.isfinite(value) else None
