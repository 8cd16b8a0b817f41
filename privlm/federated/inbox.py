"""Reads the replies of a round: who is counted, what is left out and why, how many bytes came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from privlm.errors import PrivLMError
from privlm.federated import wire
from privlm.federated.aggregate import Tensors, fault_of, is_unchanged
from privlm.federated.messages import Failure, Reply, Update, beside_model, of_model

logger = logging.getLogger("privlm")


@dataclass
class Inbox:
    """Of one round.

    asked: the clients. like: what a client has to send back, by shape and dtype. received: what it was sent.
    weight: of a client with so many examples. wire: how updates are packed (federated.wire); is_masked: they are, and
    nobody can look at a single one.
    """

    round: int
    asked: tuple[str, ...]
    like: Callable[[str], Tensors]
    received: Callable[[str], Tensors]
    weight: Callable[[int], float]
    wire: str
    is_masked: bool
    max_bytes: int
    bytes_up: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)
    """Without their tensors: what is told of them."""

    def read(self, replies: Iterable[Reply | Failure]) -> Iterator[Update]:
        """Those that are in order, one at a time; the reasons of the others are in `failures`."""
        seen: set[str] = set()
        for reply in replies:
            if isinstance(reply, Failure):
                self._leave_out(reply.client, reply.reason)
                continue
            self.bytes_up += len(reply.body)
            fault = "this client has replied already" if reply.client in seen else None
            fault = fault or (None if reply.client in self.asked else "it was not asked in this round")
            seen.add(reply.client)
            update = fault or self._update(reply)
            if isinstance(update, str):
                self._leave_out(reply.client, update)
                continue
            self.updates.append(_told(update))
            yield update

    def _update(self, reply: Reply) -> Update | str:
        """The update, or what is wrong with it."""
        try:
            tensors, meta = wire.unpack(reply.body, max_bytes=self.max_bytes)
        except PrivLMError as error:
            return str(error)
        if (meta.get("round"), meta.get("client")) != (self.round, reply.client):
            return f"a reply of client {meta.get('client')} for round {meta.get('round')}, not {self.round}"
        try:
            weight = self.weight(meta["num_examples"])
        except PrivLMError as error:
            return str(error)
        plain = of_model(tensors)
        if not self.is_masked:
            plain = self._as_weights(reply.client, plain)
            like = self.like(reply.client)
            fault = fault_of(plain, like, received=self.received(reply.client)) if like or plain else None
            fault = fault or _fault_beside(beside_model(tensors))
            if fault is not None:
                return fault
            if plain and is_unchanged(plain, self.received(reply.client)):
                logger.warning("round %d: client %s sent back what it was sent", self.round, reply.client)
        else:
            plain = tensors
        extra = {} if self.is_masked else beside_model(tensors)
        told: dict[str, Any] = {name: meta.get(name) for name in ("out_of_budget", "wire_error")}
        return Update(
            reply.client, plain, weight, meta["num_examples"], meta["steps"], extra, meta.get("metrics", {}), told
        )

    def _as_weights(self, client: str, tensors: Tensors) -> Tensors:
        """What travels in few bits is the update, not the weights."""
        if self.wire == "fp32":
            return tensors
        received, update = self.received(client), wire.expand(tensors, self.wire)
        return {
            name: (received[name].double() + value.double()).to(received[name].dtype) if name in received else value
            for name, value in update.items()
        } | {name: value for name, value in received.items() if not value.is_floating_point()}

    def _leave_out(self, client: str, reason: str) -> None:
        self.failures[client] = reason
        logger.warning("round %d: client %s is left out: %s", self.round, client, reason)


def _fault_beside(extra: Tensors) -> str | None:
    return fault_of(extra, extra) if extra else None


def _told(update: Update) -> Update:
    return Update(
        update.client, {}, update.weight, update.num_examples, update.num_steps, {}, update.metrics, update.meta
    )
