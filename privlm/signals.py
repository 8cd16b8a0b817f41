"""Stopping a run from outside: a signal is remembered and honoured at the next step boundary."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger("privlm")

EXIT_INTERRUPTED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a run that was asked to stop and has saved its state."""


class Interrupted(BaseException):
    """Leaves the run at a step boundary, its state saved.

    Not an Exception: no handler of ordinary errors may keep it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return 128 + self.signum


class StopFlag:
    """Remembers a request to stop, to be honoured at the next step boundary.

    SIGTERM and the first SIGINT set the flag; a second SIGINT stops at once (the last checkpoint stays good).
    """

    def __init__(self) -> None:
        self.signum = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signal.SIGINT == signum:
            raise Interrupted(signum)
        self.signum = signum
        logger.warning("%s: stopping at the next step boundary", signal.Signals(signum).name)
