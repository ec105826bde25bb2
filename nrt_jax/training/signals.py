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

    Several processes must stop at the same place. There JAX's preemption service catches SIGTERM, and finds out how
    often each process has asked it: the first question that none has asked yet gets a yes in all. SIGINT becomes a
    SIGTERM. Outside the main thread Python catches no signals, and neither does this.

    Attributes:
        name: Of the signal that came, such as `SIGTERM`, or None.
    """

    def __init__(self):
        self.name: str | None = None
        self._handlers = {}
        self._num_questions = 0

    def __enter__(self) -> "StopRequest":
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            note = {signal.SIGINT: self._pass_on} if jax.process_count() > 1 else dict.fromkeys(_CAUGHT, self._note)
            self._handlers = {number: signal.signal(number, handler) for number, handler in note.items()}
        return self

    def __exit__(self, *exception) -> None:
        """Gives the signals back to those who had them."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that is not Python's
        self._handlers = {}

    def is_asked(self) -> bool:
        """Whether to stop here. All processes ask at the same places, and all get the same answer."""
        if self.name is None and jax.process_count() > 1:
            self._num_questions += 1
            if multihost_utils.reached_preemption_sync_point(self._num_questions):
                self.name = "SIGTERM"
        return self.name is not None

    def check(self) -> None:
        """Raises Stopped if it is asked."""
        if self.is_asked():
            raise Stopped(f"stopped by {self.name}")

    def _note(self, number: int, _) -> None:
        self.name = signal.Signals(number).name
        self._say(self.name)

    def _pass_on(self, number: int, _) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._say(signal.Signals(number).name)

    def _say(self, name: str) -> None:
        self.__exit__()
        # print may be what was interrupted, and it is not to be entered twice.
        os.write(2, f"{name}: stopping as soon as the run can be resumed; once more to end at once\n".encode())
