"""Which clients take part in a round: a function of run seed and round, whatever was drawn before. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from privlm.errors import UsageError
from privlm.privacy import keyed_random


def sampled(clients: Sequence[str], fraction: float, round: int, seed: int, kind: str) -> list[str]:
    """The clients of one round, in the order of `clients`; under `poisson` possibly none.

    Args:
        fraction: of the clients, in (0, 1].
        round: counted from 0.
        kind: a key of SAMPLINGS.

    Raises UsageError for a fraction outside (0, 1], no clients, or one that is named twice.
    """
    require_fraction(fraction)
    if not clients:
        raise UsageError("there is no client to sample from: federated.num_clients must be at least 1")
    require_distinct(clients)
    chosen = set(SAMPLINGS[kind](clients, fraction, round, seed))
    return [client for client in clients if client in chosen]


def _fixed(clients: Sequence[str], fraction: float, round: int, seed: int) -> list[str]:
    """ceil(fraction N) of them, of the decimal that the user wrote: 0.07 of 100 is 7, and as floats a little more."""
    number = math.ceil(Fraction(repr(float(fraction))) * len(clients))
    order = keyed_random.generator("client sampling", seed, round).permutation(len(clients))
    return [clients[index] for index in order[:number]]


def _poisson(clients: Sequence[str], fraction: float, round: int, seed: int) -> list[str]:
    """Each by a coin of its own: who else there is changes nothing for a client, as amplification assumes."""
    return [
        client for client in clients if keyed_random.generator("client coin", seed, round, client).random() < fraction
    ]


def _as_released(clients: Sequence[str], fraction: float, round: int, seed: int) -> list[str]:
    """The draw of Shepherd's released code (FedIT, arXiv 2305.05644): of the round alone, no seed enters.

    It seeds numpy's global generator with the round; a generator of its own gives the same.
    """
    number = max(int(fraction * len(clients)), 1)
    order = np.random.RandomState(round).choice(np.arange(len(clients)), number, replace=False)
    return [clients[index] for index in order]


SAMPLINGS: dict[str, Callable[[Sequence[str], float, int, int], list[str]]] = {
    "fixed": _fixed,
    "poisson": _poisson,
    "as_released": _as_released,
}
"""federated.sampling -> the rule."""


def require_fraction(fraction: float) -> None:
    """Raises UsageError for a fraction of clients outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise UsageError(f"federated.fraction={fraction}: it is the share of clients in a round, above 0 and at most 1")


def require_distinct(clients: Sequence[str]) -> None:
    """Raises UsageError where two clients have one name."""
    seen: set[str] = set()
    for client in clients:
        if client in seen:
            raise UsageError(f"two clients are called {client!r}: give each client a name of its own")
        seen.add(client)
