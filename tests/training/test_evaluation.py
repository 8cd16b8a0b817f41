"""What follows from the evaluations during training: the best of them, and when to stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.regression import linear, settings, trained
from torch import nn

from privlm.errors import UsageError
from privlm.training.evaluation import Best, Evaluation


def evaluated(*values: float, name: str = "loss", **options: Any) -> Any:
    """A run of as many steps as there are values, one evaluation each."""
    scores = iter(values)
    evaluation = Evaluation("dev", lambda model: {name: next(scores), "other": 0.0}, **options.pop("own", {}))
    config = settings(evaluate_every=1, **options)
    return trained(steps=len(values), config=config, evaluation=evaluation).outcome


RISING = (0.1, 0.5, 0.4, 0.3, 0.2, 0.9)
FALLING = tuple(1 - value for value in RISING)


@pytest.mark.parametrize(
    ("values", "own", "config"),
    [
        (RISING, {"metric": "loss"}, {}),
        (FALLING, {"metric": "loss", "higher_is_better": False}, {}),
        (FALLING, {"metric": "loss"}, {"early_stop_mode": "min"}),
        (FALLING, {"metric": "other"}, {"early_stop_metric": "loss", "early_stop_mode": "min"}),
        (RISING, {}, {"early_stop_metric": "loss"}),
    ],
)
def test_training_ends_after_as_many_worse_evaluations_as_patience_allows(
    values: tuple[float, ...], own: dict[str, Any], config: dict[str, Any]
) -> None:
    outcome = evaluated(*values, own=own, early_stop_patience=2, **config)
    assert (outcome.status, outcome.steps) == ("early_stop", 4)


def test_value_that_is_no_number_is_no_improvement() -> None:
    best = Best("loss", higher_is_better=False)
    assert [best.see(step, {"loss": value}) for step, value in enumerate((math.nan, 3.0, math.nan, 2.0, 2.0), 1)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert (best.step, best.stale) == (4, 1)


def test_best_of_no_number_leaves_the_last_weights(caplog: pytest.LogCaptureFixture) -> None:
    outcome = evaluated(math.nan, math.nan, own={"metric": "loss"}, restore_best=True)
    assert (outcome.steps, outcome.best_step) == (2, None)
    assert "the last weights stay" in caplog.text


@pytest.mark.parametrize("wish", [{"early_stop_patience": 2}, {"restore_best": True}, {"early_stop_mode": "min"}])
def test_wish_that_no_evaluation_can_meet_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"trainer\.{next(iter(wish))} needs an evaluation"):
        trained(config=settings(**wish))
    with pytest.raises(UsageError, match=rf"trainer\.{next(iter(wish))} needs trainer\.early_stop_metric"):
        evaluated(1.0, **wish)


def test_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"trainer\.early_stop_metric: 'f1' is not one of loss, other"):
        evaluated(1.0, early_stop_metric="f1")


def test_chance_in_an_evaluation_is_that_of_the_step_alone() -> None:
    def drawn(seed: int) -> list[float]:
        values: list[float] = []

        def function(model: nn.Module) -> dict[str, float]:
            values.append(float(torch.rand(())))
            return {"score": 0.0}

        model = linear()
        torch.manual_seed(seed)
        evaluation = Evaluation("dev", function)
        trained(steps=4, model=model, config=settings(evaluate_every=2), evaluation=evaluation)
        return values

    assert drawn(1) == drawn(2)
    assert len(set(drawn(1))) == 2
