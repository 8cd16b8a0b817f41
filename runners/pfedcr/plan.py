"""What a run of pFedCR would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config, is_private
from privlm.federated.schema import is_federated
from privlm.training.batches import num_steps

from .data import Clients, load


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    clients, task, trainer = load(config), config.task, config.trainer
    start = task.warm_start
    warm = {"steps of the warm start": start.short_steps + start.line_steps}
    return {
        "clients": [client.name for client in clients.clients],
        "train_lines": {client.name: len(client.train) for client in clients.clients},
        "test_lines": {client.name: len(client.test) for client in clients.clients},
        "characters": len(clients.alphabet.symbols),
        **(warm if task.start_run is None else {"warm start of": task.start_run}),
        **(_rounds(config, clients) if is_federated(config) else _central(config, clients)),
        **{name: trainer[name] for name in ("batch_size", "epochs", "optimizer", "learning_rate", "schedule")},
        "notes": list(clients.notes),
    }


def _central(config: Config, clients: Clients) -> dict[str, Any]:
    num_lines = len(clients.train)
    steps = num_steps(config.trainer, num_lines)
    return {"steps": steps, **forecast.privacy(config, dataset_size=num_lines, steps=steps)}


def _rounds(config: Config, clients: Clients) -> dict[str, Any]:
    """epsilon: the budget, of which each client's own plan makes its noise."""
    steps = {client.name: num_steps(config.trainer, len(client.train)) for client in clients.clients}
    epsilon = config.privacy.epsilon if is_private(config) else None
    return {
        "method": config.federated.name,
        "rounds": config.federated.rounds,
        "steps of a round": steps,
        "epsilon": epsilon,
    }
