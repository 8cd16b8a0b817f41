"""Flower on this machine: a SuperLink and its SuperNodes, each with a home of its own, ended with all they start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tests" / "fixtures" / "federated_task"
PATIENCE = 120.0
"""Seconds for a process that imports Flower on loaded cores."""


def environment() -> Path | None:
    """The environment that scripts/flower_env.sh makes; None where there is none."""
    folder = Path(os.environ.get("PRIVLM_FLOWER_VENV", ROOT / ".venv-flower"))
    return folder if (folder / "bin" / "flower-superlink").exists() else None


class Loopback:
    """folder: of all homes and logs; runs lie in it, too. port: of the SuperLink; those of its nodes follow it."""

    def __init__(self, venv: Path, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(3)
        self._bin = venv / "bin"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def environ(self, name: str) -> dict[str, str]:
        path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        own = {"FLWR_HOME": str(self.folder / name), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        return os.environ | own | {"PATH": path, "PYTHONPATH": str(PACKAGE)}

    def start(self) -> None:
        address = ["--insecure", "--host", "127.0.0.1", "--port", str(self.port)]
        self._begin("link", "flower-superlink", *address, "--disable-runtime-dependency-installation")
        wait_for_port(self.port, self.processes["link"])
        for number in range(2):
            self.start_node(number)

    def start_node(self, number: int) -> None:
        port, config = str(self.port + 1 + number), f"partition-id={number} num-partitions=2"
        words = ["--insecure", "--superlink", self.address, "--port", port, "--node-config", config]
        self._begin(f"node{number}", "flower-supernode", *words)

    def kill(self, name: str) -> None:
        """With all of its process group, at once."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def privlm(self, *words: str) -> subprocess.Popen[str]:
        command = [str(self._bin / "python"), "-m", "privlm", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environ("command"), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def words(self, *others: str) -> list[str]:
        """Of a run that goes over this network."""
        flower = ["federated.engine=flower", f"federated.superlink={self.address}"]
        return ["run", "task=parity", *flower, *others]

    def left(self) -> list[int]:
        """Processes of this network that are there, by the home that they were given."""
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self._is_ours(path)]

    def close(self) -> None:
        for name in sorted(self.processes, reverse=True):  # the nodes before the link
            self.kill(name)
        end = time.monotonic() + PATIENCE  # the SuperExec of the link has a group of its own, and ends by itself
        while left := self.left():
            assert time.monotonic() < end, f"they outlived the network: {left}"
            time.sleep(0.1)

    def _begin(self, name: str, program: str, *words: str) -> None:
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(self._bin / program), *words], cwd=self.folder, env=self.environ(name), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _is_ours(self, environ: Path) -> bool:
        try:
            return f"FLWR_HOME={self.folder}/".encode() in environ.read_bytes()
        except OSError:
            return False


@contextlib.contextmanager
def running(venv: Path, folder: Path) -> Iterator[Loopback]:
    network = Loopback(venv, folder)
    try:
        network.start()
        yield network
    finally:
        network.close()


def free_ports(number: int) -> int:
    """The first of so many that are free one after the other."""
    for _ in range(100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + number):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no free ports")


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.2)
    raise AssertionError("the SuperLink does not listen")
