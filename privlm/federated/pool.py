"""An engine of several processes: each makes the federation for itself and works for one client at a time."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from privlm.errors import PrivLMError, UsageError
from privlm.federated.engine import answer
from privlm.federated.federation import Make
from privlm.federated.messages import Failure, Reply, Task
from privlm.federated.worker import Place, Worker
from privlm.signals import end_with_parent

logger = logging.getLogger("privlm")

READY, REPLY, FAILURE, REFUSAL = b"ready", b"reply", b"failure", b"refusal"


@dataclass
class _Process:
    """A process of the pool. task: what it works on, since when; None: it waits."""

    process: BaseProcess
    connection: Connection
    is_ready: bool = False
    number: int | None = None
    since: float = 0.0

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class Pool:
    """make: what every process makes; it must be picklable. workers: null: one a core.

    timeout: seconds that a client may take in a round. A process that is killed, or hangs beyond it, is replaced, and
    its client has failed; the round goes on.
    """

    def __init__(self, make: Make, place: Place, *, workers: int | None, timeout: float | None) -> None:
        self._make = make
        self._place = place
        self._timeout = timeout
        self._context = multiprocessing.get_context("spawn")
        self._size = workers or os.cpu_count() or 1
        self._processes: list[_Process] = []

    def run_round(self, tasks: Sequence[Task]) -> Iterator[Reply | Failure]:
        """See Engine. Raises UsageError where a process cannot make the federation."""
        answers: dict[int, Reply | Failure] = {}
        waiting = list(range(len(tasks)))[::-1]
        self._start(min(self._size, len(tasks)))
        for number in range(len(tasks)):
            while number not in answers:
                self._hand_out(tasks, waiting)
                for busy in self._ready():
                    self._take(busy, tasks, answers)
                self._give_up(tasks, answers)
            yield answers.pop(number)

    def close(self) -> None:
        """See Engine."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    # --- processes -------------------------------------------------------------------------------------------------

    def _start(self, wanted: int) -> None:
        threads = max(1, torch.get_num_threads() // self._size)
        while len(self._processes) < wanted:
            ours, theirs = self._context.Pipe()
            arguments = (theirs, self._make, self._place, threads, os.getpid())
            process = self._context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(_Process(process, ours))

    def _hand_out(self, tasks: Sequence[Task], waiting: list[int]) -> None:
        for process in self._processes:
            if waiting and process.is_ready and process.number is None:
                process.number, process.since = waiting.pop(), time.monotonic()
                task = tasks[process.number]
                with contextlib.suppress(OSError):  # it died; `_take` finds the end of the connection
                    process.connection.send_bytes(task.client.encode())
                    process.connection.send_bytes(task.body)

    def _ready(self) -> list[_Process]:
        """Those with something to say, or gone."""
        found = wait([process.connection for process in self._processes], timeout=self._patience())
        return [process for process in self._processes if process.connection in found]

    def _patience(self) -> float | None:
        """Seconds until the first client is late."""
        if self._timeout is None:
            return None
        since = [process.since for process in self._processes if process.number is not None]
        return max(0.0, min(since) + self._timeout - time.monotonic()) if since else None

    def _take(self, process: _Process, tasks: Sequence[Task], answers: dict[int, Reply | Failure]) -> None:
        try:
            kind, content = process.connection.recv_bytes(), process.connection.recv_bytes()
        except (EOFError, OSError):
            process.process.join()
            if not process.is_ready:
                raise PrivLMError(
                    f"a process of federated.engine=pool died while it started (status {process.process.exitcode}): "
                    "lower federated.workers, or use federated.engine=inprocess"
                ) from None
            self._replace(process, tasks, answers, f"its process died (status {process.process.exitcode})")
            return
        if kind == REFUSAL:
            raise UsageError(content.decode())
        if kind == READY:
            process.is_ready = True
            return
        assert process.number is not None
        client = tasks[process.number].client
        answers[process.number] = Reply(client, content) if kind == REPLY else Failure(client, content.decode())
        process.number = None

    def _give_up(self, tasks: Sequence[Task], answers: dict[int, Reply | Failure]) -> None:
        if self._timeout is None:
            return
        for process in list(self._processes):
            if process.number is not None and time.monotonic() - process.since > self._timeout:
                self._replace(process, tasks, answers, f"no reply within federated.timeout_s={self._timeout:g}")

    def _replace(
        self, process: _Process, tasks: Sequence[Task], answers: dict[int, Reply | Failure], reason: str
    ) -> None:
        process.end()
        self._processes.remove(process)
        if process.number is not None:
            answers[process.number] = Failure(tasks[process.number].client, reason)
        self._start(len(self._processes) + 1)


def _work(connection: Connection, make: Make, place: Place, threads: int, parent: int) -> None:
    """A process of the pool, until its connection ends."""
    end_with_parent(parent)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the server is gone
        try:
            worker = Worker.of(make, place)
        except PrivLMError as error:
            _say(connection, REFUSAL, str(error).encode())
            return
        _say(connection, READY, b"")
        while True:
            client = connection.recv_bytes().decode()
            try:
                told = answer(worker, client, connection.recv_bytes())
            except UsageError as error:
                _say(connection, REFUSAL, str(error).encode())
                return
            worker.close()  # another process may be next to work for this client
            if isinstance(told, Reply):
                _say(connection, REPLY, told.body)
            else:
                _say(connection, FAILURE, told.reason.encode())


def _say(connection: Connection, kind: bytes, content: bytes) -> None:
    connection.send_bytes(kind)
    connection.send_bytes(content)
