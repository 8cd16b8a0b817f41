"""A grid of Flower without Flower: messages are pairs of fields and bytes, and nodes answer in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privlm.federated.federation import Federation
from privlm.federated.flower import grid as grids
from privlm.federated.flower import node, records

CONFIG = {"task": {"name": "parity"}}
Told = Mapping[str, Any]


class Network:
    """SuperNodes by id: their settings. mute: (node, round) whose reply is lost after the work was done.

    broken: ids of nodes that answer with an error of Flower's own.
    """

    def __init__(self, make: Callable[[], Federation], folder: Path, settings: Mapping[int, Told]) -> None:
        self.settings = {number: {"folder": str(folder / str(number)), **told} for number, told in settings.items()}
        self.mute: set[tuple[int, str]] = set()
        self.broken: set[int] = set()
        self.work = lambda settings, fields, body: node.work(CONFIG, settings, fields, body)
        self._make = make
        self._ids = map(str, itertools.count())
        self._replies: dict[str, Any] = {}

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """In the place of Flower, for this process."""
        patch.setattr(node, "federation_of", lambda config: self._make())
        patch.setattr(records, "packed", lambda fields, body=b"": (dict(fields), body))
        patch.setattr(records, "unpacked", lambda content: content)
        patch.setattr(grids, "push", self.push)
        patch.setattr(grids, "pull", self.pull)
        patch.setattr(grids, "node_ids", lambda grid: set(self.settings))
        patch.setattr(grids, "LOOK_AGAIN", 0.01)

    def push(self, grid: Any, number: int, kind: str, content: Any, *, ttl: float, group: str = "") -> str:
        asked, (fields, body) = next(self._ids), content
        settings = self.settings.get(number, {})
        if number in self.broken or number not in self.settings:
            self._replies[asked] = SimpleNamespace(
                has_error=lambda: True, error=SimpleNamespace(code=5, reason="secret")
            )
            return asked
        told = (node.told_of(settings), b"") if kind == "query" else self.work(settings, fields, body)
        if (number, group) not in self.mute:
            self._replies[asked] = SimpleNamespace(has_error=lambda: False, content=told)
        return asked

    def pull(self, grid: Any, open_ids: Iterable[str]) -> Iterator[tuple[str, Any]]:
        for asked in list(open_ids):
            if asked in self._replies:
                yield asked, self._replies.pop(asked)
