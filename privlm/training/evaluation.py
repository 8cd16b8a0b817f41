"""What is measured during training, and what follows from it: the best step, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from privlm.errors import UsageError


@dataclass(frozen=True)
class Evaluation:
    """What is measured during training: `function(model)` gives name -> value on the data called `split`.

    metric: the value that says which step is best, for early stopping and restore_best, unless
        trainer.early_stop_metric names another. higher_is_better: likewise, unless trainer.early_stop_mode says.
    """

    split: str
    function: Callable[[nn.Module], Mapping[str, float]]
    metric: str | None = None
    higher_is_better: bool = True


class Best:
    """The best evaluation so far. step: None before the first one that is a number. stale: evaluations since."""

    def __init__(self, metric: str | None, higher_is_better: bool) -> None:
        self.metric = metric
        self.higher_is_better = higher_is_better
        self.step: int | None = None
        self.values: dict[str, float] = {}
        self.stale = 0

    @classmethod
    def of(cls, evaluation: Evaluation | None, config: Any) -> Best:
        """By the evaluation's own metric, or by that of a TrainerConfig.

        Raises UsageError where the config wants something of an evaluation that there is not.
        """
        metric = config.early_stop_metric or (evaluation.metric if evaluation else None)
        for key in ("early_stop_patience", "early_stop_metric", "early_stop_mode", "restore_best"):
            if getattr(config, key) and (evaluation is None or metric is None):
                raise UsageError(
                    f"trainer.{key} needs {'an evaluation' if evaluation is None else 'trainer.early_stop_metric'}: "
                    f"nothing says here which step is better; set trainer.{key}=null"
                )
        if config.early_stop_mode is not None:
            return cls(metric, config.early_stop_mode == "max")
        return cls(metric, evaluation is None or evaluation.higher_is_better)

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes in an evaluation; returns whether it is the best so far. Raises UsageError for an unknown metric."""
        if self.metric is None:
            return False
        if self.metric not in values:
            raise UsageError(f"trainer.early_stop_metric: '{self.metric}' is not one of {', '.join(values)}")
        value, best = values[self.metric], self.values.get(self.metric)
        improved = not math.isnan(value) and (best is None or (value > best if self.higher_is_better else value < best))
        if improved:
            self.step, self.values = step, dict(values)
        self.stale = 0 if improved else self.stale + 1
        return improved

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "values": self.values, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.values, self.stale = state["step"], dict(state["values"]), state["stale"]
