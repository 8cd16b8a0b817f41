"""Workers of privlm.workers that only pretend to train: what they do when they are asked to stop, hang or fall."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from privlm import workers
from privlm.signals import Interrupted, StopFlag
from privlm.workers import Ending, leave_failure

Work = Callable[[Path, int], int]


@dataclass(frozen=True)
class Crew:
    """A process that has started workers; it prints how they ended."""

    process: subprocess.Popen[str]
    directory: Path

    def ending(self, seconds: float = 60.0) -> Ending:
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0
        return Ending(**json.loads(output))

    @property
    def errors(self) -> str:
        return self.directory.with_suffix(".errors").read_text()

    def wait_for(self, *names: str) -> None:
        """Until the workers have written these files."""
        end = time.monotonic() + 60
        while not all((self.directory / name).exists() for name in names):
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end
            time.sleep(0.01)


def start(work: Work, directory: Path, **constants: float) -> Crew:
    """Two workers that do `work`, one of this module. constants: of privlm.workers, for this crew."""
    directory.mkdir()
    command = [sys.executable, "-m", "support.crew", work.__name__, str(directory), json.dumps(constants)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with open(directory.with_suffix(".errors"), "w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    return Crew(process, directory)


def _wait_for_signal(directory: Path, rank: int) -> int:
    """Steps until the run is asked to stop; the exit status then."""
    flag = StopFlag(is_alone=False)
    with flag.listening():
        (directory / f"started-{rank}").touch()
        while not flag.signum:
            time.sleep(0.01)
    return Interrupted(flag.signum).exit_code


def _wait_for_others() -> None:
    """In a collective, as its stack says."""
    code = "import time\nwhile True: time.sleep(0.1)\n"
    exec(compile(code, "/site-packages/torch/distributed/distributed_c10d.py", "exec"))


def obeys(directory: Path, rank: int) -> int:
    status = _wait_for_signal(directory, rank)
    (directory / f"saved-{rank}").touch()
    return status


def starts_slowly(directory: Path, rank: int) -> int:
    """Still imports when the signal comes."""
    (directory / f"imports-{rank}").touch()
    time.sleep(1.0)
    return obeys(directory, rank)


def saves_long(directory: Path, rank: int) -> int:
    """The main worker writes a checkpoint, a part now and then; the other waits for it."""
    status = _wait_for_signal(directory, rank)
    checkpoint = directory / "checkpoints" / "train" / ".step-1.tmp" / "weights"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    while rank == 0 and (not checkpoint.exists() or checkpoint.stat().st_size < 8):
        with open(checkpoint, "a") as file:
            file.write("x")
        time.sleep(0.5)
    if rank == 0:
        (directory / "saved").touch()
    while not (directory / "saved").exists():
        time.sleep(0.01)
    return status


def one_hangs(directory: Path, rank: int) -> int:
    """In code of a user that never returns, while the other one waits for it."""
    (directory / f"started-{rank}").touch()
    if rank == 0:
        _wait_for_others()
    with StopFlag(is_alone=False).listening():
        while True:
            time.sleep(0.1)


def one_stays(directory: Path, rank: int) -> int:
    return one_hangs(directory, rank) if rank == 1 else obeys(directory, rank)


def one_stays_after_the_end(directory: Path, rank: int) -> int:
    return one_hangs(directory, rank) if rank == 1 else 0


def hangs_while_a_tracker_writes(directory: Path, rank: int) -> int:
    (directory / "wandb").mkdir(exist_ok=True)
    (directory / f"started-{rank}").touch()
    while True:
        (directory / "wandb" / f"{rank}.log").write_text(str(time.time()))
        time.sleep(0.05)


def _lose_peer(directory: Path, rank: int) -> int:
    time.sleep(0.05)
    leave_failure(directory, rank, "RuntimeError: Connection closed by peer", status=1, lost_peer=True)
    return 1


def one_is_killed(directory: Path, rank: int) -> int:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _lose_peer(directory, rank)


def one_crashes(directory: Path, rank: int) -> int:
    if rank == 1:
        ctypes.string_at(0)
    return _lose_peer(directory, rank)


def one_exits(directory: Path, rank: int) -> int:
    if rank == 1:
        os._exit(7)
    return _lose_peer(directory, rank)


def one_fails_late(directory: Path, rank: int) -> int:
    """It is still writing down why when the other, which has lost it, is gone already."""
    if rank == 0:
        return _lose_peer(directory, rank)
    time.sleep(0.5)
    leave_failure(directory, rank, "ValueError: of its own", status=2, lost_peer=False)
    return 2


def one_fails_and_one_hangs(directory: Path, rank: int) -> int:
    if rank == 0:
        _wait_for_others()
    leave_failure(directory, rank, "ValueError: of its own", status=2, lost_peer=False)
    return 2


if __name__ == "__main__":
    name, folder, constants = sys.argv[1:]
    for constant, value in json.loads(constants).items():
        setattr(workers, constant, value)
    named = getattr(importlib.import_module("support.crew"), name)  # of __main__, workers would not find it
    print(json.dumps(asdict(workers.spawn(named, Path(folder), 2))))
