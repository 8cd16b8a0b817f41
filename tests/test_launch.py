"""Several processes: their own, torchrun's, killed, interrupted, and two that want the same run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import pytest
from omegaconf import OmegaConf
from support import forked
from support.processes import children_of, is_there, is_worker, wait_until_gone
from support.runs import only_run, outcome, tiny_run

from privlm import launch, rundir
from privlm.identity import Roles
from privlm.job import Job

pytestmark = pytest.mark.medium

LONG = ("trainer.steps=100", "trainer.checkpoint_every=20", "trainer.evaluate_every=0", "trainer.log_every=1")
TWO = ("trainer=ddp", "trainer.processes=2")
FAULTY = Path(__file__).parent / "fixtures" / "faulty_task"
PRIVATE = ("privacy.rng=reproducible",)
NON_PRIVATE = ("privacy=none",)

Run = Callable[[list[str]], str]


VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Start(Protocol):
    """packages, variables: as support.forked.start takes them."""

    def __call__(self, words: list[str], *, packages: Path | None = None, **variables: str) -> forked.Command: ...


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts a command in a process that imports nothing again; what it spawns does. None outlives the test."""
    started: list[forked.Command] = []

    def start(words: list[str], *, packages: Path | None = None, **variables: str) -> forked.Command:
        folder = tmp_path_factory.mktemp("command")
        started.append(forked.start(words, folder, packages=packages, **(VARIABLES | variables)))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()


@pytest.fixture
def run(start: Start) -> Run:
    """Runs to the end; returns what was printed on stderr."""

    def to_the_end(words: list[str]) -> str:
        status, _, errors = start(words).wait()
        assert status == 0, errors
        return errors

    return to_the_end


def torchrun(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "privlm", *words]


def to_the_end(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | VARIABLES)


def wait_for(condition: Callable[[], bool], command: forked.Command) -> None:
    while not condition():
        assert command.process.is_alive(), command.wait()[2]
        time.sleep(0.01)


def num_lines(runs: Path, name: str) -> int:
    found = list(runs.glob(f"ewtune/*/{name}"))
    return found[0].read_bytes().count(b"\n") if found else 0


def losses(runs: Path) -> list[float]:
    rows = [json.loads(line) for line in (only_run(runs) / "metrics.jsonl").read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] == "loss"]


def test_one_process_two_and_torchrun_agree(run: Run, messages: Path, tmp_path: Path) -> None:
    short = (*NON_PRIVATE, "adapter=lora", "trainer.log_every=1", "trainer.micro_batch_size=4")
    one, two, launched = tmp_path / "one", tmp_path / "two", tmp_path / "torchrun"
    run(tiny_run(messages, one, *short))
    run(tiny_run(messages, two, *short, *TWO))
    assert to_the_end(torchrun(tiny_run(messages, launched, *short))).returncode == 0
    assert len(losses(one)) == 6
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(launched) == losses(two)
    assert only_run(launched).name == only_run(two).name  # the same run: it would be resumed, or skipped


def test_two_processes_spend_the_same_epsilon(run: Run, messages: Path, tmp_path: Path) -> None:
    spent = {}
    for name, trainer in {"one": (), "two": TWO}.items():
        run(tiny_run(messages, tmp_path / name, *PRIVATE, *trainer))
        spent[name] = outcome(only_run(tmp_path / name))
    assert spent["one"]["epsilon"] == spent["two"]["epsilon"]
    assert spent["one"]["steps"] == spent["two"]["steps"] == 6
    assert spent["one"]["weights"] != spent["two"]["weights"]  # each process draws noise of its own


@pytest.mark.parametrize("privacy", [PRIVATE, NON_PRIVATE], ids=["private", "non-private"])
@pytest.mark.parametrize("trainer", [(), TWO], ids=["one process", "two processes"])
def test_killed_in_the_middle_of_training(
    privacy: tuple[str, ...],
    trainer: tuple[str, ...],
    start: Start,
    run: Run,
    messages: Path,
    tmp_path: Path,
) -> None:
    settings = (*LONG, *privacy, *trainer, "adapter=lora")
    progress = "privacy_ledger.jsonl" if privacy == PRIVATE else "metrics.jsonl"
    run(tiny_run(messages, tmp_path / "whole", *settings))
    words = tiny_run(messages, tmp_path / "killed", *settings)
    command = start(words)
    wait_for(lambda: num_lines(tmp_path / "killed", progress) > 45, command)
    workers = children_of(command.pid)
    command.signal(signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    wait_until_gone(workers)
    assert num_lines(tmp_path / "killed", progress) < 100
    assert "resuming" in run(words)
    assert outcome(only_run(tmp_path / "killed")) == outcome(only_run(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("signum", "trainer"),
    [
        *[(signum, ()) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)],
        *[(signum, TWO) for signum in (signal.SIGTERM, signal.SIGINT)],
        *[pytest.param(signum, TWO, marks=pytest.mark.slow) for signum in (signal.SIGUSR2, signal.SIGHUP)],
    ],
)
def test_signal_saves_at_the_step_boundary(
    signum: int, trainer: tuple[str, ...], start: Start, run: Run, messages: Path, tmp_path: Path
) -> None:
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE, *trainer, "trainer.checkpoint_every=0")
    command = start(words)
    wait_for(lambda: num_lines(tmp_path, "privacy_ledger.jsonl") > 20, command)
    children = children_of(command.pid)
    if trainer and signum == signal.SIGTERM:  # a stopped rank keeps nobody from stopping, and saves with the others
        os.kill(max(filter(is_worker, children)), signal.SIGSTOP)
    command.signal(signum)
    found, _, errors = command.wait()
    assert found == (130 if signum == signal.SIGINT else 143), errors
    directory = only_run(tmp_path)
    assert state_of(directory) == ("interrupted", signal.Signals(signum).name)
    require_a_checkpoint_of_all_releases(directory)
    wait_until_gone(children)
    run(words)
    assert outcome(directory)["steps"] == 100
    assert num_lines(tmp_path, "privacy_ledger.jsonl") == 100  # and none was made twice


def state_of(directory: Path) -> tuple[str, str]:
    status = json.loads((directory / "status.json").read_text())
    return status["state"], status["reason"]


def require_a_checkpoint_of_all_releases(directory: Path) -> None:
    (checkpoint,) = (directory / "checkpoints" / "train").iterdir()
    taken = int(checkpoint.name.removeprefix("step-"))
    assert taken == (directory / "privacy_ledger.jsonl").read_bytes().count(b"\n")


def test_closed_terminal_saves_at_the_step_boundary(messages: Path, tmp_path: Path) -> None:
    """A hang-up is a SIGHUP, and every write to the terminal fails from then on."""
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE, "trainer.checkpoint_every=0")
    ours, theirs = pty.openpty()
    of_terminal = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = subprocess.Popen(
        [sys.executable, "-c", of_terminal, "-m", "privlm", *words], stdin=theirs, env=os.environ | VARIABLES
    )
    os.close(theirs)
    while num_lines(tmp_path, "privacy_ledger.jsonl") < 20:
        assert command.poll() is None
        os.read(ours, 2**16)
    os.close(ours)
    assert command.wait(60) == 143
    assert state_of(only_run(tmp_path)) == ("interrupted", "SIGHUP")
    require_a_checkpoint_of_all_releases(only_run(tmp_path))


def test_rank_that_hangs_keeps_nobody_from_stopping_the_run(start: Start, tmp_path: Path) -> None:
    """In code of a user that never returns, while the other rank waits for it in a collective."""
    words, told = ["run", "task=faulty", f"runs={tmp_path / 'runs'}"], tmp_path / "told"
    command = start(words, packages=FAULTY, FAULT=f"1:hang:{told}")
    wait_for(told.exists, command)
    children = children_of(command.pid)
    command.signal(signal.SIGTERM)
    time.sleep(1.5)
    assert command.process.is_alive()
    command.signal(signal.SIGTERM)
    status, _, errors = command.wait(20)
    assert status == 143
    wait_until_gone(children)
    (directory,) = (tmp_path / "runs" / "faulty").iterdir()
    state, reason = state_of(directory)
    assert state == "interrupted"
    assert reason.startswith("SIGTERM, then SIGTERM; rank 1 did not answer and was killed, and so was rank 0, waiting")
    assert errors.splitlines()[-1] == f"privlm: {reason}"
    command = start(words, packages=FAULTY)
    status, _, errors = command.wait()
    assert status == 0, errors
    assert "resumed from step 2" in (directory / "run.log").read_text()


@pytest.mark.parametrize(
    ("asked", "status", "state", "reason"),
    [
        (0, 1, "failed", "another process of the run has gone, whose own last lines say why: RuntimeError: "),
        (signal.SIGTERM, 143, "interrupted", "SIGTERM, and another process had gone before the checkpoint"),
    ],
)
def test_process_that_has_lost_another_says_so(
    asked: int, status: int, state: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank of torchrun does; of our own workers, we know which one fell."""
    config = OmegaConf.create({"scale": "small", "seed": 0, "task": {"name": "demo"}, "tracker": {"name": "none"}})
    rundir.create(tmp_path, config, [], run_hash="a" * 64, cell_hash="b" * 64, roles=Roles(), inputs={})

    def lose(config: object, job: Job) -> None:
        job.stop.signum = asked
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr(launch.registry, "entry_of", lambda config: SimpleNamespace(run_function=lambda: lose))
    assert launch.work(tmp_path, 0) == status
    found = state_of(tmp_path)
    assert found[0] == state
    assert found[1].startswith(reason)


@pytest.mark.slow
def test_rank_that_fails_is_named_by_its_own_error(start: Start, tmp_path: Path) -> None:
    words = ["run", "task=faulty", f"runs={tmp_path / 'runs'}"]
    status, _, errors = start(words, packages=FAULTY, FAULT="1:fail").wait()
    assert status == 1
    assert errors.splitlines()[-1].startswith("privlm: rank 1: ValueError: a row of this rank's is bad (traceback in ")


def test_lost_process_is_named_and_nothing_is_left_behind(start: Start, messages: Path, tmp_path: Path) -> None:
    command = start(tiny_run(messages, tmp_path, *LONG, *PRIVATE, *TWO))
    wait_for(lambda: num_lines(tmp_path, "privacy_ledger.jsonl") > 20, command)
    children = children_of(command.pid)
    workers = [pid for pid in children if is_worker(pid)]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    status, _, errors = command.wait()
    assert status == 1
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("privlm: rank 1 was killed by signal 9 (Killed)")  # not who lost it
    assert not [pid for pid in workers if is_there(pid)]
    wait_until_gone(children)
    state, reason = state_of(only_run(tmp_path))
    assert state == "failed"
    assert reason.startswith("rank 1 was killed by signal 9")


def test_second_process_on_a_run_is_told_who_has_it(start: Start, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE)
    first = start(words)
    wait_for(lambda: num_lines(tmp_path, "privacy_ledger.jsonl") > 0, first)
    first.signal(signal.SIGSTOP)  # else it may be done before the second has started
    status, _, errors = start(words).wait()
    assert status == 1
    assert f"process {first.process.pid} on" in errors
    first.signal(signal.SIGTERM)
    first.signal(signal.SIGCONT)
    assert first.wait()[0] == 143


def test_outer_launcher_must_start_what_the_config_asks_for(messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, "trainer=ddp", "trainer.processes=3")
    done = to_the_end(torchrun(words))
    assert done.returncode != 0
    assert "trainer.processes=3, but the outer launcher started 2" in done.stderr
    assert not (tmp_path / "ewtune").exists()


def launched(words: list[str], runs: Path, errors: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """torchrun in the middle of training, and its ranks."""
    with open(errors, "w") as file:
        command = subprocess.Popen(torchrun(words), stderr=file, env=os.environ | VARIABLES)
    while num_lines(runs, "privacy_ledger.jsonl") < 20:
        assert command.poll() is None, errors.read_text()
        time.sleep(0.01)
    return command, children_of(command.pid)


def test_torchrun_that_is_asked_to_stop_leaves_a_saved_run(messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE, "trainer.checkpoint_every=0")
    command, ranks = launched(words, tmp_path, tmp_path / "errors")
    command.terminate()
    assert command.wait(60) != 0
    wait_until_gone(ranks)
    errors = (tmp_path / "errors").read_text()
    assert errors.count("Traceback") == 1  # torchrun's own
    assert "/privlm/" not in errors.partition("Traceback")[2]
    assert state_of(only_run(tmp_path)) == ("interrupted", "SIGTERM")
    require_a_checkpoint_of_all_releases(only_run(tmp_path))


@pytest.mark.slow
def test_ranks_of_a_torchrun_that_is_killed_save_and_leave(messages: Path, run: Run, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE, "trainer.checkpoint_every=0")
    command, ranks = launched(words, tmp_path, tmp_path / "errors")
    command.kill()
    command.wait()
    wait_until_gone(ranks)
    assert state_of(only_run(tmp_path)) == ("interrupted", "SIGTERM")
    require_a_checkpoint_of_all_releases(only_run(tmp_path))
    assert "resuming" in run([*words, *TWO])
    assert outcome(only_run(tmp_path))["steps"] == 100


def test_process_that_waits_for_the_others_of_its_world_is_ended_by_ctrl_c(
    start: Start, messages: Path, tmp_path: Path
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    world = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = start(tiny_run(messages, tmp_path / "runs"), **world)

    def is_waiting() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", int(port))).close()
            return True
        return False

    wait_for(is_waiting, command)
    command.signal(signal.SIGINT)
    assert command.wait(20)[0] == -signal.SIGINT
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_accelerate_launch_on_cpus_gives_the_world_that_was_asked_for(messages: Path, tmp_path: Path) -> None:
    """It starts one process there, without a word; the run starts those that are missing."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "privlm"]
    done = to_the_end([*launcher, *tiny_run(messages, tmp_path, *NON_PRIVATE, "trainer.steps=2")])
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in (only_run(tmp_path) / "config.yaml").read_text()
