"""Several processes: their own, torchrun's, killed, interrupted, and two that want the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import forked
from support.runs import only_run, outcome, tiny_run

pytestmark = pytest.mark.medium

LONG = ("trainer.steps=100", "trainer.checkpoint_every=20", "trainer.evaluate_every=0", "trainer.log_every=1")
TWO = ("trainer=ddp", "trainer.processes=2")
PRIVATE = ("privacy.rng=reproducible",)
NON_PRIVATE = ("privacy=none",)

Start = Callable[[list[str]], forked.Command]
Run = Callable[[list[str]], str]


VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a command in a process that imports nothing again; what it spawns does."""
    return lambda words: forked.start(words, tmp_path_factory.mktemp("command"), **VARIABLES)


@pytest.fixture
def run(start: Start) -> Run:
    """Runs to the end; returns what was printed on stderr."""

    def to_the_end(words: list[str]) -> str:
        status, _, errors = start(words).wait()
        assert status == 0, errors
        return errors

    return to_the_end


def torchrun(words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "privlm")
    return subprocess.run(
        [sys.executable, *launcher, *words], capture_output=True, text=True, check=False, env=os.environ | VARIABLES
    )


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


def workers_of(command: forked.Command) -> list[int]:
    parent = command.process.pid
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if _is_readable(path)]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == parent]


def wait_until_gone(workers: list[int]) -> None:
    """They end with their parent, at once, but nobody waits for them."""
    end = time.monotonic() + 60
    while any(_is_readable(Path(f"/proc/{pid}/cmdline")) for pid in workers):
        assert time.monotonic() < end, "a worker outlived the run"
        time.sleep(0.01)


def _is_readable(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False


def test_one_process_two_and_torchrun_agree(run: Run, messages: Path, tmp_path: Path) -> None:
    short = (*NON_PRIVATE, "adapter=lora", "trainer.log_every=1", "trainer.micro_batch_size=4")
    one, two, launched = tmp_path / "one", tmp_path / "two", tmp_path / "torchrun"
    run(tiny_run(messages, one, *short))
    run(tiny_run(messages, two, *short, *TWO))
    assert torchrun(tiny_run(messages, launched, *short)).returncode == 0
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
    workers = workers_of(command)
    command.signal(signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    wait_until_gone(workers)
    assert num_lines(tmp_path / "killed", progress) < 100
    assert "resuming" in run(words)
    assert outcome(only_run(tmp_path / "killed")) == outcome(only_run(tmp_path / "whole"))


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("trainer", [(), TWO], ids=["one process", "two processes"])
def test_signal_saves_at_the_step_boundary(
    signum: int,
    status: int,
    trainer: tuple[str, ...],
    start: Start,
    run: Run,
    messages: Path,
    tmp_path: Path,
) -> None:
    words = tiny_run(messages, tmp_path, *LONG, *PRIVATE, *trainer, "trainer.checkpoint_every=0")
    command = start(words)
    wait_for(lambda: num_lines(tmp_path, "privacy_ledger.jsonl") > 20, command)
    command.signal(signum)
    found, _, errors = command.wait()
    assert found == status, errors
    directory = only_run(tmp_path)
    state = json.loads((directory / "status.json").read_text())
    assert (state["state"], state["reason"]) == ("interrupted", signal.Signals(signum).name)
    (checkpoint,) = (directory / "checkpoints" / "train").iterdir()
    taken = int(checkpoint.name.removeprefix("step-"))
    assert taken == num_lines(tmp_path, "privacy_ledger.jsonl")  # no release was lost
    run(words)
    assert outcome(directory)["steps"] == 100
    assert num_lines(tmp_path, "privacy_ledger.jsonl") == 100  # and none was made twice


def test_lost_process_is_named_and_nothing_is_left_behind(start: Start, messages: Path, tmp_path: Path) -> None:
    command = start(tiny_run(messages, tmp_path, *LONG, *PRIVATE, *TWO))
    wait_for(lambda: num_lines(tmp_path, "privacy_ledger.jsonl") > 20, command)
    workers = [pid for pid in workers_of(command) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    status, _, errors = command.wait()
    assert status in (1, 137)
    assert "Traceback" not in errors
    assert "signal 9" in errors.splitlines()[-1]
    assert not [pid for pid in workers if _is_readable(Path(f"/proc/{pid}/cmdline"))]
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["state"] == "failed"


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
    done = torchrun(words)
    assert done.returncode != 0
    assert "trainer.processes=3, but the outer launcher started 2" in done.stderr
    assert not (tmp_path / "ewtune").exists()


@pytest.mark.slow
def test_accelerate_launch_on_cpus_gives_the_world_that_was_asked_for(messages: Path, tmp_path: Path) -> None:
    """It starts one process there, without a word; the run starts those that are missing."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "privlm")
    words = tiny_run(messages, tmp_path, *NON_PRIVATE, "trainer.steps=2")
    done = subprocess.run(
        [sys.executable, *launcher, *words], capture_output=True, text=True, check=False, env=os.environ | VARIABLES
    )
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in (only_run(tmp_path) / "config.yaml").read_text()
