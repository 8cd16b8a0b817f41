"""The optimizers, and which parameter has which learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from privlm.errors import UsageError

Groups = list[dict[str, Any]]

OPTIMIZERS: dict[str, Callable[[Groups, Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups, config: torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, weight_decay=config.weight_decay),
}
"""trainer.optimizer -> its maker, of parameter groups and a TrainerConfig."""


def make_optimizer(config: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """One parameter group for trainer.learning_rate, which comes first, and one for each of trainer.learning_rates.

    A name of trainer.learning_rates stands for the parameters that have it as a part of theirs, between dots, anywhere:
    `attention` and `layer.0` both mean `encoder.layer.0.attention.weight`; `*` stands for any text. Where several
    match, the longest counts, of equally long ones the first.

    Raises UsageError for a name that no parameter is left for, ValueError for an unknown optimizer.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"trainer.optimizer: {config.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    by_pattern: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in ("", *config.learning_rates)}
    for name, parameter in parameters.items():
        by_pattern[_pattern_of(name, config.learning_rates)].append(parameter)
    for pattern in config.learning_rates:
        if not by_pattern[pattern]:
            raise UsageError(
                f"trainer.learning_rates: no parameter that trains has '{pattern}' as a part of its name (or a longer "
                f"name of trainer.learning_rates has taken them all); there are {_some(list(parameters))}"
            )
    rates = {"": config.learning_rate, **config.learning_rates}
    groups = [
        {"params": members, "lr": rates[pattern], "initial_lr": rates[pattern]}
        for pattern, members in by_pattern.items()
    ]
    return OPTIMIZERS[config.optimizer](groups, config)


def rates_of(rates: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Those of trainer.learning_rates that count for one of the parameters `names`, where a part of a model trains."""
    taken = {_pattern_of(name, rates) for name in names}
    return {pattern: rate for pattern, rate in rates.items() if pattern in taken}


def _pattern_of(name: str, patterns: Mapping[str, float]) -> str:
    matching = [pattern for pattern in patterns if fnmatchcase(f".{name}.", f"*.{pattern}.*")]
    return max(matching, key=len, default="")


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
