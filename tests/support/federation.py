"""A small federation for tests: a linear regression whose clients have points of their own, or a two-layer network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.config import FederatedConfig, PrivacyConfig, defaults
from privlm.federated.federation import Federation
from privlm.models.loaded import Loaded
from support.regression import Points, Squares, linear, settings

SIZES = (20, 5, 10, 15)
CLIENTS = tuple(f"c{number}" for number in range(len(SIZES)))


class Share:
    """A part of the points, with a label offset of its own."""

    lengths = None

    def __init__(self, number: int) -> None:
        points = Points()
        mine = slice(sum(SIZES[:number]), sum(SIZES[: number + 1]))
        self.x, self.y = points.x[mine], points.y[mine] + number

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.y[indices]}


def config_of(name: str = "fedavg", privacy: Any = None, **changes: Any) -> SimpleNamespace:
    """changes: of the group `federated`, or with the prefix trainer_ of the trainer."""
    trainer = {key.removeprefix("trainer_"): changes.pop(key) for key in list(changes) if key.startswith("trainer_")}
    base = {"batch_size": 5, "learning_rate": 0.02, "steps": 3, "epochs": None, "micro_batch_size": 5}
    fault = changes.pop("fault", {})
    federated = defaults(FederatedConfig, "federated", name, **({"rounds": 4} | changes))
    for key, value in fault.items():
        setattr(federated.fault, key, value)
    return SimpleNamespace(
        federated=federated,
        trainer=settings(**(base | trainer)),
        privacy=privacy or defaults(PrivacyConfig, "privacy", "none"),
        seed=0,
    )


def network() -> nn.Module:
    """With normalisation and a head, for strategies that keep parts with the client."""
    torch.manual_seed(0)
    layers = {"body": nn.Linear(3, 4), "norm": nn.BatchNorm1d(4), "act": nn.Tanh(), "head": nn.Linear(4, 1)}
    model = nn.Sequential()
    for key, layer in layers.items():
        model.add_module(key, layer)
    return model


def federation(config: Any, build: Any = linear, clients: tuple[str, ...] = CLIENTS) -> Federation:
    data = {client: Share(CLIENTS.index(client)) for client in clients}
    return Federation(config, Loaded.of(build, made_of=build.__name__), Squares(), data)
