"""Workers that are stopped, hang, fall or are orphaned: none keeps a run from ending, and what fell first is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import crew
from support.crew import Crew
from support.processes import children_of, is_worker, wait_until_gone

from privlm.processes import is_lost_peer
from privlm.workers import Ending, Left, how_it_ended

pytestmark = pytest.mark.torch_free

medium = pytest.mark.medium
Start = Callable[..., Crew]

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR2, 143), (signal.SIGHUP, 143)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts two workers; whatever the test says, none is left behind."""
    started: list[Crew] = []
    seen: list[int] = []

    def start(work: crew.Work, *, ready: str = "started", **constants: float) -> Crew:
        started.append(crew.start(work, tmp_path / "run", **constants))
        started[-1].wait_for(*(f"{ready}-{rank}" for rank in (0, 1) if ready))
        seen.extend(children_of(started[-1].process.pid))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
    wait_until_gone(seen)


def stopped(crew: Crew, *signums: int, apart: float = 1.1) -> tuple[Ending, float]:
    """How it ends when it receives these signals, and how long that took from the last of them on."""
    for number, signum in enumerate(signums):
        time.sleep(apart if number else 0)
        crew.process.send_signal(signum)
    start = time.monotonic()
    return crew.ending(), time.monotonic() - start


# --- asked to stop ------------------------------------------------------------------------------------------------


@medium
@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_a_signal_is_passed_on_to_all(signum: int, status: int, start: Start) -> None:
    run = start(crew.obeys)
    assert stopped(run, signum)[0] == Ending(status)
    assert {path.name for path in run.directory.glob("saved-*")} == {"saved-0", "saved-1"}


@medium
def test_a_stopped_worker_is_continued_so_that_it_can_save(start: Start) -> None:
    run = start(crew.obeys)
    worker = max(filter(is_worker, children_of(run.process.pid)))
    os.kill(worker, signal.SIGSTOP)
    assert stopped(run, signal.SIGTERM)[0] == Ending(143)
    assert (run.directory / "saved-1").exists()


@medium
@pytest.mark.parametrize(("signum", "status"), SIGNALS)
def test_a_signal_that_comes_while_workers_import_is_neither_lost_nor_deadly(
    signum: int, status: int, start: Start
) -> None:
    run = start(crew.starts_slowly, ready="imports")
    assert stopped(run, signum)[0] == Ending(status)
    assert (run.directory / "saved-1").exists()
    assert "Traceback" not in run.errors


@medium
def test_a_signal_sent_twice_by_the_system_is_one_request(start: Start) -> None:
    run = start(crew.saves_long)
    assert stopped(run, signal.SIGHUP, signal.SIGHUP, apart=0.1)[0] == Ending(143)
    assert (run.directory / "saved").exists()


@medium
@pytest.mark.parametrize(("signum", "status"), SIGNALS[:2])
def test_a_second_signal_ends_at_once_whoever_hangs(signum: int, status: int, start: Start) -> None:
    ending, seconds = stopped(start(crew.one_hangs), signum, signal.SIGTERM)
    name = signal.Signals(signum).name
    assert (ending.status, ending.state) == (status, "interrupted")
    assert ending.message.startswith(f"{name}, then SIGTERM; rank 1 did not answer and was killed, and so was rank 0, ")
    assert seconds < 10


@medium
def test_where_each_worker_stood_is_in_the_log(start: Start) -> None:
    run = start(crew.one_hangs)
    stopped(run, signal.SIGTERM, signal.SIGTERM)
    log = (run.directory / "run.log").read_text()
    assert "in one_hangs" in log.partition("rank 1 stood at\n")[2].splitlines()[1]
    assert {path.name for path in run.directory.iterdir()} == {"run.log", "started-0", "started-1"}


@medium
def test_without_a_second_signal_silence_ends_a_run_that_hangs(start: Start) -> None:
    ending, seconds = stopped(start(crew.one_hangs, SILENT_SECONDS=2.0), signal.SIGTERM)
    assert (ending.status, ending.state) == (143, "interrupted")
    assert ending.message.startswith("SIGTERM; rank 1 did not answer and was killed")
    assert seconds > 2


@medium
def test_a_worker_that_stays_when_another_has_left_is_ended(start: Start) -> None:
    ending, _ = stopped(start(crew.one_stays, LEAVE_SECONDS=2.0), signal.SIGINT)
    assert (ending.status, ending.state) == (130, "interrupted")
    assert ending.message.startswith("SIGINT; rank 1 did not answer and was killed (")


@medium
def test_a_long_save_is_not_cut_off(start: Start) -> None:
    run = start(crew.saves_long, SILENT_SECONDS=2.0)
    ending, seconds = stopped(run, signal.SIGTERM)
    assert ending == Ending(143)
    assert seconds > 3
    assert (run.directory / "saved").exists()


@medium
def test_what_the_thread_of_a_tracker_writes_is_no_sign_of_life(start: Start) -> None:
    ending, _ = stopped(start(crew.hangs_while_a_tracker_writes, SILENT_SECONDS=2.0), signal.SIGTERM)
    assert ending.message.startswith("SIGTERM; ranks 0 and 1 did not answer and were killed")


@medium
def test_a_worker_that_stays_when_the_run_is_done_changes_nothing_of_it(start: Start) -> None:
    ending = start(crew.one_stays_after_the_end, ready="", LEAVE_SECONDS=1.0).ending()
    assert (ending.status, ending.state) == (0, "")
    assert ending.message.startswith("the run is done, but rank 1 did not answer and was killed")


# --- fallen -------------------------------------------------------------------------------------------------------


@medium
@pytest.mark.parametrize(
    ("work", "status", "message"),
    [
        (crew.one_is_killed, 1, "rank 1 was killed by signal 9 (Killed), which the system sends where memory runs out"),
        (crew.one_crashes, 1, "rank 1 was killed by signal 11 (Segmentation fault); where it stood is in run.log"),
        (crew.one_exits, 1, "rank 1 ended with exit status 7 and no message"),
        (crew.one_fails_late, 2, "rank 1: ValueError: of its own"),
        (crew.one_fails_and_one_hangs, 2, "rank 1: ValueError: of its own"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_fell_first_is_named(work: crew.Work, status: int, message: str, start: Start) -> None:
    run = start(work, ready="")
    assert run.ending() == Ending(status, "failed", message)
    if work is crew.one_crashes:
        assert "in one_crashes" in (run.directory / "run.log").read_text()


@medium
def test_workers_end_with_a_parent_that_is_killed(start: Start) -> None:
    run = start(crew.one_hangs)
    children = children_of(run.process.pid)
    assert len(list(filter(is_worker, children))) == 2
    run.process.kill()
    wait_until_gone(children)


def note(rank: int, time: float, message: str, *, lost_peer: bool = False, status: int = 1) -> dict[str, object]:
    return {"rank": rank, "time": time, "message": message, "status": status, "lost_peer": lost_peer}


@pytest.mark.parametrize(
    ("left", "notes", "requests", "expected"),
    [
        # An error, and a worker that dies of what it does to the world.
        ({0: (10.0, 1), 1: (10.5, -6)}, [note(0, 9.9, "ValueError")], (), (1, "failed", "ValueError")),
        # A worker that is killed, and one that says so in words of its own.
        ({0: (10.1, 1), 1: (10.0, -9)}, [note(0, 9.9, "KeyError")], (), (1, "failed", "rank 1 was killed by signal 9")),
        # All meet the same fault: it is no single rank's.
        ({0: (10.0, 2), 1: (10.0, 2)}, [note(1, 9.0, "no data", status=2), note(0, 9.1, "no data", status=2)], (),
         (2, "failed", "no data")),
        # Nobody knows better.
        ({0: (10.0, 1), 1: (9.0, 0)}, [note(0, 9.9, "closed by peer", lost_peer=True)], (),
         (1, "failed", "closed by peer")),
        # The main worker is done: what becomes of the others is of no account, unless they have failed.
        ({0: (10.0, 0), 1: (10.2, -11)}, [], (), (0, "", "")),
        ({0: (10.0, 0), 1: (10.2, 1)}, [note(1, 10.1, "closed by peer", lost_peer=True)], (), (0, "", "")),
        ({0: (10.0, 0), 1: (10.2, 1)}, [note(1, 10.1, "ValueError")], (), (1, "failed", "rank 1: ValueError")),
        # Asked to stop: the saving fails, a worker is killed by others, or all have left.
        ({0: (10.0, 1), 1: (10.0, 143)}, [note(0, 9.9, "disk full")], (signal.SIGTERM,), (1, "failed", "disk full")),
        ({0: (10.0, 143), 1: (9.0, -9)}, [], (signal.SIGTERM,), (1, "failed", "rank 1 was killed by signal 9")),
        ({0: (10.0, 130), 1: (9.0, 1)}, [note(1, 9.0, "closed", lost_peer=True)], (signal.SIGINT,), (130, "", "")),
        ({0: (10.0, 1), 1: (9.0, 130)}, [note(0, 9.9, "closed", lost_peer=True)], (signal.SIGINT,),
         (130, "interrupted", "SIGINT")),
        # Asked by a signal to one of them alone.
        ({0: (10.0, 143), 1: (9.0, 143)}, [], (), (143, "", "")),
    ],
)  # fmt: skip
def test_what_came_first_decides_how_it_ended(
    left: dict[int, tuple[float, int]],
    notes: list[dict[str, object]],
    requests: tuple[int, ...],
    expected: tuple[int, str, str],
) -> None:
    ending = how_it_ended({rank: Left(*gone) for rank, gone in left.items()}, notes, requests)
    assert (ending.status, ending.state) == expected[:2]
    assert ending.message.startswith(expected[2])
    assert bool(ending.message) == bool(expected[2])


def test_a_lost_peer_is_told_from_an_error_of_ones_own() -> None:
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:2")
    wrapped = ValueError("the batch could not be gathered")
    wrapped.__cause__ = lost
    assert is_lost_peer(lost)
    assert is_lost_peer(wrapped)
    assert not is_lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_peer(ConnectionResetError("Connection reset by peer"))  # of a server that is asked
