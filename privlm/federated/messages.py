"""What travels between server and clients: bytes, and the tensors in them by kind.

A tensor of the model has its own name. What a strategy sends beside it (a control variate, the state of an optimizer)
is called `kind:name`; no parameter's name holds a colon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from privlm.federated.aggregate import Tensors

OPTIMIZER = "optimizer"
"""Kinds optimizer/purpose are the states of optimizers."""


@dataclass(frozen=True)
class Task:
    """A client's work of one round. pack: makes what it is sent, when it is sent: of many clients not all at once."""

    client: str
    round: int
    pack: Callable[[], bytes]

    @property
    def body(self) -> bytes:
        """Packed anew each time."""
        return self.pack()


@dataclass(frozen=True)
class Reply:
    """What a client has sent back."""

    client: str
    body: bytes


@dataclass(frozen=True)
class Failure:
    """A client of which nothing came. reason: never text of its data."""

    client: str
    reason: str


@dataclass(frozen=True)
class Update:
    """A reply that the server has read and found to be in order.

    tensors: the client's own, of the names that travel. weight: its share in a mean, not normalised.
    extra: what the strategy sent beside them (`of_kind`).
    """

    client: str
    tensors: Tensors
    weight: float
    num_examples: int
    num_steps: int
    extra: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


def named(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The names under which tensors of a kind travel."""
    return {f"{kind}:{name}": tensor for name, tensor in tensors.items()}


def of_kind(kind: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Those of one kind, by their own names."""
    return {name.removeprefix(f"{kind}:"): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}:")}


def of_optimizer(tensors: Mapping[str, Tensor]) -> Tensors:
    """Those of the clients' optimizers, of all their trainings, under the names that travel."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{OPTIMIZER}/")}


def of_model(tensors: Mapping[str, Tensor]) -> Tensors:
    """Those of no kind."""
    return {name: tensor for name, tensor in tensors.items() if ":" not in name}


def beside_model(tensors: Mapping[str, Tensor]) -> Tensors:
    """Those of any kind."""
    return {name: tensor for name, tensor in tensors.items() if ":" in name}
