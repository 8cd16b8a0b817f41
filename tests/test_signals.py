"""Requests to stop: which signals are one, what a second one does, and who stays deaf."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from privlm import signals
from privlm.signals import Interrupted, StopFlag

pytestmark = pytest.mark.torch_free


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """They are put back, whatever a test does."""
    before = {signum: signal.getsignal(signum) for signum in signals.STOPPING}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 143), (signal.SIGHUP, 143)],
)
def test_each_of_them_is_remembered_and_named(signum: int, status: int) -> None:
    flag = StopFlag()
    before = signal.getsignal(signum)
    with flag.listening():
        os.kill(os.getpid(), signum)
        assert flag.signum == signum
    assert (str(Interrupted(signum)), Interrupted(signum).exit_code) == (signal.Signals(signum).name, status)
    assert signal.getsignal(signum) == before


def test_a_process_that_is_alone_leaves_at_once_at_a_second_ctrl_c() -> None:
    flag = StopFlag()
    with flag.listening():
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):  # timeout(1) sends it twice by itself
            os.kill(os.getpid(), signum)
        with pytest.raises(Interrupted, match="SIGTERM"):  # what it was asked for first
            os.kill(os.getpid(), signal.SIGINT)


def test_one_of_several_leaves_only_with_the_others() -> None:
    flag = StopFlag(is_alone=False)
    with flag.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.signum == signal.SIGINT


def test_under_nohup_a_run_is_deaf_to_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flag = StopFlag()
    with flag.listening():
        os.kill(os.getpid(), signal.SIGHUP)
        assert flag.signum == 0


def test_what_comes_before_anyone_listens_is_heard_then() -> None:
    flag = StopFlag()
    with signals.held_back():
        signal.raise_signal(signal.SIGUSR2)  # in this thread: others hold back nothing
        with flag.listening():
            assert flag.signum == signal.SIGUSR2
        signal.raise_signal(signal.SIGTERM)  # after the work: it is held back again
        assert signal.sigpending() == {signal.SIGTERM}
        assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM
