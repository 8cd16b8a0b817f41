"""Train and evaluation mode while a model trains, and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.regression import Squares, plan, private, settings, trained
from torch import Tensor, nn

from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.evaluation import Evaluation
from privlm.training.modes import TrainingModes
from privlm.training.objective import ExampleRandom, PerExample


class Parts(nn.Module):
    """A frozen body with statistics and dropout, and a head with dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1))
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Looking(Squares):
    """Remembers the modes that its losses see."""

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        self.modes = modes(model)
        return super().losses(model, batch, rng)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def seen(model: nn.Module, **options: Any) -> dict[str, bool]:
    """The modes while the model trains."""
    objective, before = Looking(), modes(model)
    trained(objective, steps=2, model=model, **options)
    assert modes(model) == before
    return objective.modes


@pytest.mark.parametrize("privately", [False, True])
def test_frozen_part_stays_in_the_mode_that_the_caller_gave_it(privately: bool) -> None:
    model = Parts()
    model.body.eval()
    before = model.body[1].running_mean.clone()  # type: ignore[operator,union-attr]
    found = seen(model, private=private(plan()) if privately else None)
    assert {name for name, mode in found.items() if not mode} == {"body", "body.0", "body.1", "body.2"}
    assert torch.equal(model.body[1].running_mean, before)  # type: ignore[arg-type]


def test_part_that_trains_is_in_train_mode_and_the_rest_as_it_was() -> None:
    model = Parts()
    model.head.eval()
    found = seen(model)
    assert found.pop("head.0") is False  # dropout that the caller has switched off
    assert all(found.values())


def test_model_from_a_loader_is_in_train_mode_but_for_frozen_statistics() -> None:
    found = seen(Parts().eval())
    assert {name for name, mode in found.items() if not mode} == {"body.1"}


def test_modes_survive_evaluation_and_a_function_that_changes_them() -> None:
    model, during = Parts(), []
    model.body.eval()

    def function(model: nn.Module) -> dict[str, float]:
        during.append(model.training)
        model.train()
        return {"accuracy": 1.0}

    found = seen(model, config=settings(evaluate_every=1), evaluation=Evaluation("dev", function))
    assert during == [False, False]
    assert not found["body.1"]


def test_modes_are_given_back_after_an_error() -> None:
    model = Parts()
    model.head.eval()
    before = modes(model)

    def fail() -> None:
        with TrainingModes(model) as training:
            training.train()
            with evaluation_mode(model):
                raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert modes(model) == before
