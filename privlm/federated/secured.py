"""Secure aggregation in a round: what a client does to its update before it masks it, and what the server may see.

A simulation of the protocol (privlm.federated.secure_aggregation says of what).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from privlm.errors import PrivLMError
from privlm.federated.aggregate import Tensors, clipped, norm
from privlm.federated.messages import Update
from privlm.federated.secure_aggregation import FixedPoint, SecureSum, TooFewSurvivors

logger = logging.getLogger("privlm")


@dataclass(frozen=True)
class Secured:
    """The secure sum of one round. clients: those that were asked; threshold: how many of them have to stay.

    clip: largest norm of a vector that is summed. largest: weight of a client, by which all are divided, so that no
    vector grows. clipping_norm: of a client's update, under privacy by client.
    """

    clients: tuple[str, ...]
    threshold: int
    clip: float
    seed: int
    largest: float = 1.0
    clipping_norm: float | None = None

    @classmethod
    def of(
        cls, config: Any, clients: Iterable[str], seed: int, *, largest: float, clipping_norm: float | None
    ) -> Secured:
        """config: of the group `federated`."""
        asked = tuple(sorted(clients))
        threshold = max(min(2, len(asked)), math.ceil(config.secure_threshold * len(asked)))
        clip = config.secure_clip if clipping_norm is None else clipping_norm
        return cls(asked, threshold, clip, seed, largest, clipping_norm)

    def for_client(self, weight: float) -> dict[str, Any]:
        """What a client is told (JSON). weight: of its update in a mean."""
        told: dict[str, Any] = {"clients": list(self.clients), "threshold": self.threshold, "clip": self.clip}
        share = weight / self.largest
        return told | {"seed": self.seed, "clipping_norm": self.clipping_norm, "weight": share}

    def mean(self, updates: Iterable[Update]) -> Tensors:
        """The weighted mean of the updates of those that have stayed. Raises PrivLMError where they are too few."""
        weights, replies = {}, {}
        for update in updates:
            weights[update.client], replies[update.client] = update.weight / self.largest, update.tensors
        total = self._protocol().sum(replies)
        return {name: value / sum(weights.values()) for name, value in total.items()}

    def sum(self, updates: Iterable[Update]) -> tuple[Tensors, int]:
        """The sum of clipped updates, and of how many; of none where too few have stayed: a round without them
        releases noise alone.
        """
        replies = {update.client: update.tensors for update in updates}
        try:
            return self._protocol().sum(replies), len(replies)
        except TooFewSurvivors as error:
            logger.warning("%s", error)
            return {}, 0

    def _protocol(self) -> SecureSum:
        return SecureSum(self.clients, self.threshold, self.clip, self.seed)


def masked(told: Mapping[str, Any], client: str, update: Tensors) -> Tensors:
    """What a client sends: its update, clipped where there is privacy by client, weighted and masked.

    Raises PrivLMError for an update that is not finite: nobody could see it in the sum.
    """
    length, bound = norm(update), told["clipping_norm"]
    if not math.isfinite(length):
        raise PrivLMError("the update is not finite")
    if bound is not None:
        size = sum(value.numel() for value in update.values())
        bound -= FixedPoint(told["clip"], len(told["clients"])).step * math.sqrt(size) / 2  # what rounding may add
        update = clipped(update, bound)
    elif length * told["weight"] > told["clip"]:
        logger.warning(
            "the update of client %s has norm %.3g, cut to federated.secure_clip=%g", client, length, told["clip"]
        )
    vectors = {name: value * told["weight"] for name, value in update.items()}
    return SecureSum(told["clients"], told["threshold"], told["clip"], told["seed"]).client(client).mask(vectors)
