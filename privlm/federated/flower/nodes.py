"""Which SuperNode serves which client: each node is asked once, when it is first seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import privlm
from privlm.errors import UsageError
from privlm.federated.flower import grid as grids
from privlm.federated.flower import records

logger = logging.getLogger("privlm")

HOW = "flower-supernode --node-config 'partition-id=0 num-partitions=2', or 'client=NAME'"
"""How a node says whom it serves."""


class Nodes:
    """clients: of the federation, in their order: a node may name its clients by their places."""

    def __init__(self, grid: Any, clients: Sequence[str]) -> None:
        self._grid = grid
        self._clients = clients
        self._asked: set[int] = set()
        self._lost: set[int] = set()
        self._serving: dict[str, int] = {}

    def serving(self, client: str) -> int | None:
        """None where no node does."""
        return self._serving.get(client)

    def lose(self, client: str) -> None:
        """Its node does not answer: whoever serves the client from now on takes its place."""
        self._lost.add(self._serving[client])

    def look(self, wanted: Collection[str], seconds: float) -> None:
        """Asks the nodes that are new. The first time it waits for all `wanted` clients, but no longer than `seconds`.

        Raises UsageError where two nodes serve one client.
        """
        end, is_first = time.monotonic() + seconds, not self._asked
        open_: dict[str, int] = {}
        while True:
            self._ask(open_, end)
            for asked, reply in grids.pull(self._grid, open_):
                self._hear(open_.pop(asked), reply)
            missing = is_first and not self._serving.keys() >= set(wanted)
            if not (open_ or missing) or self._serves_all(wanted) or time.monotonic() >= end:
                break
            grids.wait(end)

    def _serves_all(self, wanted: Collection[str]) -> bool:
        return all(client in self._serving and self._serving[client] not in self._lost for client in wanted)

    def _ask(self, open_: dict[str, int], end: float) -> None:
        for node in grids.node_ids(self._grid) - self._asked:
            self._asked.add(node)
            ttl = max(1.0, end - time.monotonic())
            if (
                asked := grids.push(self._grid, node, "query", records.packed({"ask": "clients"}), ttl=ttl)
            ) is not None:
                open_[asked] = node

    def _hear(self, node: int, reply: Any) -> None:
        if reply.has_error():
            logger.warning("SuperNode %d is left out: Flower's error %d; is privlm there?", node, reply.error.code)
            return
        fields, _ = records.unpacked(reply.content)
        if fields["version"] != privlm.__version__:
            logger.warning("SuperNode %d has PrivLM %s, here is %s", node, fields["version"], privlm.__version__)
        served = self._served(fields)
        if not served:
            logger.warning("SuperNode %d serves no client of this run: %s", node, HOW)
        for client in served:
            self._take(client, node)

    def _served(self, fields: Mapping[str, Any]) -> Sequence[str]:
        if fields["client"]:
            return [client for client in self._clients if client == fields["client"]]
        first, step = fields["partition"], fields["partitions"] or len(self._clients)
        return self._clients[first::step] if first >= 0 else []

    def _take(self, client: str, node: int) -> None:
        other = self._serving.get(client)
        if other is not None and other not in self._lost and other in grids.node_ids(self._grid):
            raise UsageError(f"SuperNodes {other} and {node} both serve client {client}: let one of them serve others")
        self._serving[client] = node
