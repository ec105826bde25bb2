"""A run that is asked to stop, because its machine is taken away or by Ctrl-C, stops where it can go on later."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

from nrt_jax.errors import Stopped

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one does what it does elsewhere, at once.

    A run of several processes must stop everywhere after the same step: there JAX's preemption service catches
    SIGTERM, and `after_step` asks it. Outside the main thread Python catches no signals, and neither does this.

    Attributes:
        name: Of the signal that came, such as `SIGTERM`, or None.
    """

    def __init__(self):
        self.name: str | None = None
        self._handlers = {}

    def __enter__(self) -> "StopRequest":
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            self._handlers = {number: signal.signal(number, self._note) for number in _CAUGHT}
        return self

    def __exit__(self, *exception) -> None:
        """Gives the signals back to those who had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's
        self._handlers = {}

    def after_step(self, step: int) -> bool:
        """Whether to stop now that `step` steps are done: all processes ask, and all get the same answer."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.name = "SIGTERM"
        return self.name is not None

    def check(self) -> None:
        """Raises Stopped if a signal came to this process."""
        if self.name is not None:
            raise Stopped(f"stopped by {self.name}")

    def _note(self, number: int, _) -> None:
        self.name = signal.Signals(number).name
        self.__exit__()
        # print may be what was interrupted, and it is not to be entered twice.
        os.write(2, f"{self.name}: stopping as soon as the run can be resumed; once more to end at once\n".encode())
