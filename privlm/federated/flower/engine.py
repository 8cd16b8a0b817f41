"""The engine of several machines: a SuperNode of Flower serves each client, and this process is the ServerApp.

Rounds, strategies, privacy and checkpoints are those of the other engines; what a client keeps, and the first copy of
its ledger, lie with its node (privlm.federated.flower.node).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from privlm import files
from privlm.errors import UsageError
from privlm.federated.federation import Federation
from privlm.federated.flower import grid as grids
from privlm.federated.flower import records
from privlm.federated.flower.ledger_copies import LedgerCopies
from privlm.federated.flower.nodes import HOW, Nodes
from privlm.federated.messages import Failure, Reply, Task
from privlm.federated.worker import Place
from privlm.privacy.schema import is_private_by_record

Answers = dict[int, Reply | Failure]


class Flower:
    """grid: of the ServerApp. place: of the server. note: told what stands below the results.

    A client has federated.timeout_s for a round, all that its node does for others meanwhile included.
    """

    def __init__(self, grid: Any, federation: Federation, place: Place, note: Callable[[str], None]) -> None:
        self._grid = grid
        self._federation = federation
        self._seconds: float = federation.config.federated.timeout_s
        self._nodes = Nodes(grid, federation.clients)
        self._note = note
        self._same_for_all = _run_of(place)
        is_told = is_private_by_record(federation.config)
        assert place.run is not None or not is_told, "a ServerApp works on a run directory"
        self._ledgers = LedgerCopies(place.run) if is_told and place.run is not None else None

    @classmethod
    def of_this_process(cls, federation: Federation, place: Place, note: Callable[[str], None]) -> Flower:
        """Raises UsageError in a process that is no ServerApp."""
        if (grid := grids.current()) is None:
            raise UsageError(
                "federated.engine=flower: this process is no ServerApp of Flower. `privlm run` with "
                "federated.superlink=HOST:PORT hands one run to a SuperLink, `privlm TASK export-app DIR` writes an "
                "app for `flwr run`; a sweep takes federated.engine=inprocess or pool"
            )
        return cls(grid, federation, place, note)

    def run_round(self, tasks: Sequence[Task]) -> Iterator[Reply | Failure]:
        """See Engine. Raises UsageError where two nodes serve one client."""
        self._nodes.look([task.client for task in tasks], self._seconds)
        open_, answers = self._send(tasks), Answers()
        end = time.monotonic() + self._seconds
        for number, task in enumerate(tasks):
            while number not in answers and number in open_.values() and time.monotonic() < end:
                self._hear(open_, tasks, answers)
                if number not in answers:
                    grids.wait(end)
            yield answers.pop(number) if number in answers else self._missing(task)

    def close(self) -> None:
        """See Engine. The nodes go on to wait for other runs."""
        if self._ledgers is not None:
            self._ledgers.tell_unheard(self._note)

    def _send(self, tasks: Sequence[Task]) -> dict[str, int]:
        """The id of each message that was sent -> the place of its task."""
        sent = {}
        for number, task in enumerate(tasks):
            if (node := self._nodes.serving(task.client)) is None:
                continue
            content = records.packed(self._fields(task), task.body)
            if asked := grids.push(self._grid, node, "train", content, ttl=self._seconds, group=str(task.round)):
                sent[asked] = number
                if self._ledgers is not None:
                    self._ledgers.asked(task.client)
        return sent

    def _fields(self, task: Task) -> dict[str, Any]:
        fields: dict[str, Any] = {"client": task.client, "rows": -1, "ledger": -1} | self._same_for_all
        if self._ledgers is not None:
            fields |= {"rows": len(self._federation.data[task.client]), "ledger": self._ledgers.size(task.client)}
        return fields

    def _hear(self, open_: dict[str, int], tasks: Sequence[Task], answers: Answers) -> None:
        for asked, reply in grids.pull(self._grid, open_):
            number = open_.pop(asked)
            answers[number] = self._answer(tasks[number].client, reply)

    def _answer(self, client: str, reply: Any) -> Reply | Failure:
        if reply.has_error():  # whose reason is text of a program that has seen the client's rows
            self._nodes.lose(client)
            return Failure(client, f"its SuperNode gave Flower's error {reply.error.code}")
        fields, body = records.unpacked(reply.content)
        if self._ledgers is not None and "lines" in fields:
            self._ledgers.take(client, fields["start"], fields["lines"])
        return Reply(client, body) if fields["kind"] == "reply" else Failure(client, fields["reason"])

    def _missing(self, task: Task) -> Failure:
        if self._nodes.serving(task.client) is None:
            return Failure(task.client, f"no SuperNode serves it ({HOW})")
        self._nodes.lose(task.client)
        return Failure(task.client, f"no reply within federated.timeout_s={self._seconds:g}")


def _run_of(place: Place) -> dict[str, str]:
    """What tells a node which run its files are of: a run that --force has removed is another."""
    if place.run is None:
        return {"stage": place.stage, "run": "in-memory", "begun": ""}
    status = files.read_json(place.run / "status.json") or {}
    return {"stage": place.stage, "run": place.run.name, "begun": str(status.get("started", ""))}
