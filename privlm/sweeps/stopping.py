"""Signals to the process that conducts a sweep."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from privlm import signals


class Stopped(Exception):
    """The sweep was asked to stop; what is at work has saved its state, or goes on in its jobs."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = signals.exit_status(signum)


class Stop:
    """signum: the signal that has come, 0 before. tell: called with the signal for those at work: SIGTERM, and SIGKILL
    for the second.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.signum = 0
        self._tell = tell
        self._has_come = threading.Event()

    def receive(self, signum: int, frame: FrameType | None = None) -> None:
        is_second, self.signum = bool(self.signum), signum
        self._tell(signal.SIGKILL if is_second else signal.SIGTERM)
        self._has_come.set()

    def wait(self, seconds: float) -> None:
        """Sleeps, but not after a signal has come."""
        self._has_come.wait(seconds)


@contextmanager
def stopping(tell: Callable[[int], None] = lambda signum: None) -> Iterator[Stop]:
    stop = Stop(tell)
    with signals.handled(stop.receive):
        yield stop
