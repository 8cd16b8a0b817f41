"""Faults on purpose: what becomes of a round where clients are not reached, are late, or send numbers that are none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from privlm.federated import wire
from privlm.federated.engine import Engine
from privlm.federated.messages import Failure, Reply, Task
from privlm.privacy import keyed_random


class Faulty:
    """An engine with the faults of federated.fault, drawn by key. attempt: counts rounds that are tried again."""

    def __init__(self, engine: Engine, config: Any, seed: int) -> None:
        self.engine = engine
        self.config = config
        self.seed = seed
        self._attempts: dict[int, int] = {}

    def run_round(self, tasks: Sequence[Task]) -> Iterator[Reply | Failure]:
        """See Engine."""
        attempt = max((self._count(task.round) for task in tasks[:1]), default=0)
        dropped = {task.client: reason for task in tasks if (reason := self._reason(task, attempt))}
        reached = self.engine.run_round([task for task in tasks if task.client not in dropped])
        for task in tasks:
            if task.client in dropped:
                yield Failure(task.client, dropped[task.client])
            else:
                yield self._spoilt(next(reached))
        self._kill(tasks)

    def close(self) -> None:
        """See Engine."""
        self.engine.close()

    def _count(self, round_: int) -> int:
        self._attempts[round_] = self._attempts.get(round_, 0) + 1
        return self._attempts[round_]

    def _reason(self, task: Task, attempt: int) -> str | None:
        draw = keyed_random.generator("federated faults", self.seed, task.round, task.client, attempt).random(2)
        if draw[0] < self.config.drop_rate:
            return "not reached (federated.fault.drop_rate)"
        if draw[1] < self.config.straggler_rate:
            return "too late (federated.fault.straggler_rate)"
        return None

    def _spoilt(self, reply: Reply | Failure) -> Reply | Failure:
        if isinstance(reply, Failure) or reply.client != self.config.nan_client:
            return reply
        tensors, meta = wire.unpack(reply.body)
        spoilt = {
            name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        return Reply(reply.client, wire.pack(spoilt, meta))

    def _kill(self, tasks: Sequence[Task]) -> None:
        if tasks and tasks[0].round == self.config.kill_at_round:
            os.kill(os.getpid(), signal.SIGKILL)


def are_wanted(config: Any) -> bool:
    """Whether federated.fault asks for any."""
    rates = config.drop_rate + config.straggler_rate
    return bool(rates) or config.nan_client is not None or config.kill_at_round is not None
