"""A TensorBoard file, written record by record.

tensorboardX's own `SummaryWriter` writes in a thread: a kill loses up to two minutes of records, and on a full disk the
thread ends and the run waits for it forever.
"""

import pathlib
import time
from collections.abc import Mapping

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram, text


class EventFile:
    """One process's part of a run's curves."""

    def __init__(self, folder: pathlib.Path, purge_step: int | None = None):
        """Makes a file in `folder`; TensorBoard then hides what earlier files hold from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files in the order of their names, which tell seconds: a run may resume within one.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns() % 10**9:09}")
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
        """Writes a step's numbers, and hands them to the operating system."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.write_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
        self._writer.flush()

    def write_sample(self, step: int, histograms: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
        """Writes values to be counted, and texts in Markdown, and hands them to the operating system."""
        summaries = [histogram(name, values, bins=30) for name, values in histograms.items() if values.size]
        summaries += [text(name, value) for name, value in texts.items()]
        for summary in summaries:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
