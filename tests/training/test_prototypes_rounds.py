"""Federated averaging as a library: rounds of clients over the Trainer, without a job."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from support.regression import NUM_EXAMPLES, Points, Squares, linear, settings
from torch import Tensor, nn

from privlm.privacy import keyed_random
from privlm.training.batches import ShuffledBatches
from privlm.training.trainer import Trainer

NUM_ROUNDS, NUM_CLIENTS, LOCAL_STEPS, BATCH, RATE = 20, 4, 3, 5, 0.02
SIZES = (20, 5, 10, 15)


class Client:
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


def seed_of(round_: int, client: int) -> int:
    return keyed_random.key_bits("local training", 0, round_, client) >> 65


def average(states: list[dict[str, Tensor]], sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """FedAvg (McMahan et al., AISTATS 2017), in float64."""
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    return {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True)).to(value.dtype)  # type: ignore[union-attr]
        for name, value in states[0].items()
    }


def federated(model: nn.Module, clients: list[Client], **changes: Any) -> dict[str, Tensor]:
    config = settings(batch_size=BATCH, learning_rate=RATE, log_every=0, **changes)
    accelerator = Accelerator(cpu=True)
    for round_ in range(NUM_ROUNDS):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        states = []
        for number, client in enumerate(clients):
            model.load_state_dict(start)
            trainer = Trainer(model, Squares(), client, config, seed=seed_of(round_, number), accelerator=accelerator)
            trainer.run(LOCAL_STEPS)
            states.append({name: value.clone() for name, value in model.state_dict().items()})
        model.load_state_dict(average(states, SIZES))
    return model.state_dict()


def by_hand(clients: list[Client]) -> np.ndarray:
    """The same in numpy: weights and bias, float64 [4]."""
    model = linear()
    w = torch.cat([model.weight.detach().flatten(), model.bias.detach()]).double().numpy()
    for round_ in range(NUM_ROUNDS):
        moved = []
        for number, client in enumerate(clients):
            v, batches = w.copy(), ShuffledBatches(len(client), BATCH, seed_of(round_, number))
            for step in range(1, LOCAL_STEPS + 1):
                indices = batches.indices(step)
                x = np.column_stack([client.x[indices].double().numpy(), np.ones(BATCH)])
                v -= RATE * 2 * x.T @ (x @ v - client.y[indices].double().numpy()) / BATCH
            moved.append(v)
        w = np.average(moved, axis=0, weights=SIZES)
    return w


def test_twenty_rounds_of_four_clients_are_federated_averaging() -> None:
    assert sum(SIZES) == NUM_EXAMPLES
    clients, before = [Client(number) for number in range(NUM_CLIENTS)], torch.get_rng_state()
    model = linear()
    torch.set_rng_state(before)
    found = federated(model, clients)
    assert torch.equal(torch.get_rng_state(), before)
    got = torch.cat([found["weight"].flatten(), found["bias"]])
    np.testing.assert_allclose(got, by_hand(clients), rtol=1e-5)
    assert got[3] > 1.5  # the mean of the offsets, on the way from 1
