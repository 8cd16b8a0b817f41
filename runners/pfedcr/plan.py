"""What a run of pFedCR would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.training.batches import num_steps

from .data import load


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    clients, task, trainer = load(config), config.task, config.trainer
    num_lines, start = len(clients.train), task.warm_start
    steps = num_steps(trainer, num_lines)
    warm = {"steps of the warm start": start.short_steps + start.line_steps}
    return {
        "clients": [client.name for client in clients.clients],
        "train_lines": {client.name: len(client.train) for client in clients.clients},
        "test_lines": {client.name: len(client.test) for client in clients.clients},
        "characters": len(clients.alphabet.symbols),
        **(warm if task.start_run is None else {"warm start of": task.start_run}),
        "steps": steps,
        **{name: trainer[name] for name in ("batch_size", "epochs", "optimizer", "learning_rate", "schedule")},
        **forecast.privacy(config, dataset_size=num_lines, steps=steps),
        "notes": list(clients.notes),
    }
