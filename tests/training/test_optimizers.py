"""Optimizers, the learning rates of parts of a model, and schedules against torch's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.regression import settings, trained
from torch import nn

from privlm.errors import UsageError
from privlm.training.optimizers import make_optimizer
from privlm.training.schedule import SCHEDULES, learning_rate_factor

NAMES = [
    "encoder.layer.0.attention.query.weight",
    "encoder.layer.0.attention.query.lora_A.default.weight",
    "encoder.layer.1.attention.output.weight",
    "encoder.layer.1.output.weight",
    "attention_head.weight",
    "head.weight",
]


def rates(**patterns: float) -> dict[str, float]:
    """Learning rate of each name."""
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in NAMES}
    config = settings(learning_rate=1.0, learning_rates=patterns)
    found = make_optimizer(config, parameters)
    of = {id(member): group["lr"] for group in found.param_groups for member in group["params"]}
    return {name: of[id(parameter)] for name, parameter in parameters.items()}


def named(found: dict[str, float], rate: float) -> list[str]:
    return [name for name, value in found.items() if value == rate]


def test_a_rate_is_of_all_parameters_with_this_part_in_their_names() -> None:
    assert named(rates(attention=0.5), 0.5) == NAMES[:3]
    assert named(rates(head=0.5), 0.5) == NAMES[5:]
    assert named(rates(**{"layer.1": 0.5}), 0.5) == NAMES[2:4]
    assert named(rates(**{"lora_*": 0.5}), 0.5) == NAMES[1:2]


def test_the_longest_of_several_names_counts() -> None:
    for patterns in ({"attention": 0.5, "attention.query": 0.25}, {"attention.query": 0.25, "attention": 0.5}):
        found = rates(**patterns)
        assert named(found, 0.5) == NAMES[2:3]
        assert named(found, 0.25) == NAMES[:2]


@pytest.mark.parametrize("patterns", [{"decoder": 0.5}, {"query": 0.5, "attention.query": 0.5}])
def test_a_name_that_no_parameter_is_left_for_is_refused(patterns: dict[str, float]) -> None:
    message = rf"no parameter that trains has '{next(iter(patterns))}' as a part of its name .* there are encoder"
    with pytest.raises(UsageError, match=message):
        rates(**patterns)


def test_onecycle_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, pct_start=0.3)
    config = SimpleNamespace(schedule="onecycle", warmup_steps=0, warmup_share=None, final_learning_rate=None)
    for step in range(1, 51):
        assert learning_rate_factor(config, step, 50) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3)])
def test_schedules_of_few_steps_stay_in_range(schedule: str, steps: int, warmup: int) -> None:
    config = SimpleNamespace(schedule=schedule, warmup_steps=warmup, warmup_share=None, final_learning_rate=None)
    assert all(0 < learning_rate_factor(config, step, steps) <= 1 for step in range(1, steps + 1))


def test_speed_and_memory_are_told_beside_the_metrics() -> None:
    run = trained(steps=6, config=settings(log_every=2))
    told = [values for _, split, values in run.rows if split == "run"]
    assert [set(values) for values in told] == [{"examples_per_second", "peak_memory"}] * 3
    assert all(values["examples_per_second"] > 0 and values["peak_memory"] > 1e7 for values in told)
    assert {"loss", "learning_rate", "gradient_norm"} == set(run.train[0])


def test_gradient_norm_is_told_as_it_was_before_clipping() -> None:
    free, clipped = (trained(steps=1, config=settings(max_grad_norm=norm)).train[0] for norm in (None, 1e-3))
    assert clipped["gradient_norm"] == pytest.approx(free["gradient_norm"])
    assert free["gradient_norm"] > 1
