"""Secure aggregation in a round: what a client does to its update before it masks it, and what the server may see.

A simulation of the protocol (privlm.federated.secure_aggregation says of what).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from privlm.errors import PrivLMError
from privlm.federated.aggregate import Tensors, norm
from privlm.federated.messages import Update, named, of_kind
from privlm.federated.secure_aggregation import SecureSum

WEIGHT = "weight"


@dataclass(frozen=True)
class Secured:
    """The secure sum of one round. clients: those that were asked; threshold: how many of them have to stay.

    clip: largest magnitude of a summed value; clipping_norm: of a client's update, under privacy by client.
    """

    clients: tuple[str, ...]
    threshold: int
    clip: float
    seed: int
    clipping_norm: float | None = None

    @classmethod
    def of(cls, config: Any, clients: Iterable[str], seed: int, clipping_norm: float | None) -> Secured:
        """config: of the group `federated`."""
        asked = tuple(sorted(clients))
        threshold = max(min(2, len(asked)), math.ceil(config.secure_threshold * len(asked)))
        return cls(asked, threshold, config.secure_clip, seed, clipping_norm)

    def protocol(self) -> SecureSum:
        return SecureSum(self.clients, self.threshold, self.clip, self.seed)

    def for_client(self, weight: float) -> dict[str, Any]:
        """What a client is told (JSON). weight: of its update in the sum, at most 1."""
        told = {"clients": list(self.clients), "threshold": self.threshold, "clip": self.clip, "seed": self.seed}
        return told | {"clipping_norm": self.clipping_norm, "weight": weight}

    def sum(self, updates: Iterable[Update]) -> tuple[Tensors, float]:
        """Sum of weighted updates and of weights. Raises where too few clients have stayed."""
        total = self.protocol().sum({update.client: update.tensors for update in updates})
        weight = float(of_kind(WEIGHT, total)["sum"])
        return {name: value for name, value in total.items() if ":" not in name}, weight

    def clipped_sum(self, updates: Iterable[Update]) -> tuple[Tensors, int]:
        """Sum of clipped updates, and of how many."""
        replies = {update.client: update.tensors for update in updates}
        if not replies:
            return {}, 0
        total = self.protocol().sum(replies)
        return {name: value for name, value in total.items() if ":" not in name}, len(replies)


def masked(told: Mapping[str, Any], client: str, update: Tensors) -> Tensors:
    """What a client sends: its update, clipped where there is privacy by client, weighted and masked.

    Raises PrivLMError for an update that is not finite: nobody could see it in the sum.
    """
    length = norm(update)
    if not math.isfinite(length):
        raise PrivLMError("the update is not finite")
    bound, weight = told["clipping_norm"], told["weight"]
    factor = weight * (min(1.0, bound / length * (1 - 1e-6)) if bound is not None and length > 0 else 1.0)
    vectors = {name: value * factor for name, value in update.items()}
    vectors |= named(WEIGHT, {"sum": torch.tensor([float(weight)])})
    secure = SecureSum(told["clients"], told["threshold"], told["clip"], told["seed"])
    return secure.client(client).mask(vectors)
