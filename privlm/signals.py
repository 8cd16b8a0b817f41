"""Stopping a run from outside: a signal is remembered and honoured at the next step boundary."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import termios
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger("privlm")

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
"""A run that receives one of them saves and leaves. SIGUSR2 is how SLURM tells of a time limit or a preemption ahead,
SIGHUP how a closed terminal does.
"""

EXIT_INTERRUPTED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a run that was asked to stop and has saved its state."""

Receive = Callable[[int, FrameType | None], None]


def exit_status(signum: int) -> int:
    """130 for SIGINT, 143 for the others: whoever starts runs need know these two alone."""
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


class Interrupted(BaseException):
    """Leaves the run at a step boundary, its state saved.

    Not an Exception: no handler of ordinary errors may keep it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return exit_status(self.signum)


class StopFlag:
    """Remembers the first request to stop, to be honoured at the next step boundary.

    is_alone: a SIGINT that follows stops at once (the last checkpoint stays good). One of several processes is never
        stopped so, in the midst of what the others wait for: whoever started them ends them together.
    """

    def __init__(self, *, is_alone: bool = True) -> None:
        self.signum = 0
        self._is_alone = is_alone

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopFlag]:
        with handled(self._receive):
            yield self

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            if self._is_alone and signum == signal.SIGINT:
                raise Interrupted(self.signum)
            return
        self.signum = signum
        logger.warning("%s: stopping at the next step boundary", signal.Signals(signum).name)


@contextlib.contextmanager
def handled(receive: Receive) -> Iterator[None]:
    """Has `receive` told of the signals of STOPPING, those included that were held back before.

    Under nohup, which ignores SIGHUP, a run stays deaf to it.
    """

    def heard(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _leave_closed_terminal()
        receive(signum, frame)

    numbers = [number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, heard) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Keeps STOPPING from this thread, and from processes started in it until they handle them (`handled`): one that is
    still importing would else die of a signal, or miss it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _leave_closed_terminal() -> None:
    """What is printed to a terminal that has gone would fail, and the run with it: from here on nobody reads it."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor)


def end_with_parent(parent: int) -> None:
    """Has the kernel end this process when the one that started it, of this id, is gone, however it went."""
    signal_at_death_of_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def signal_at_death_of_parent(signum: int) -> None:
    """Has the kernel send it to this process when the thread that started it is gone."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signum)
