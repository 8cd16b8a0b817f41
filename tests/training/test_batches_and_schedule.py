"""Batches and learning rates as functions of the step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from privlm.training.batches import ShuffledBatches, num_steps
from privlm.training.schedule import learning_rate_factor

pytestmark = pytest.mark.torch_free


def test_each_epoch_sees_every_example_once_across_batch_borders() -> None:
    batches = ShuffledBatches(num_examples=10, batch_size=4, seed=3)
    stream = np.concatenate([batches.indices(step) for step in range(1, 6)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert list(stream[:10]) != list(stream[10:])
    assert all(len(batches.indices(step)) == 4 for step in range(1, 6))


def test_batch_larger_than_the_data_repeats_it() -> None:
    counts = np.bincount(ShuffledBatches(3, 6, seed=0).indices(1))
    assert counts.tolist() == [2, 2, 2]


def test_batches_depend_on_seed_and_step_alone() -> None:
    first = ShuffledBatches(100, 10, seed=1).indices(7)
    assert np.array_equal(first, ShuffledBatches(100, 10, seed=1).indices(7))
    assert not np.array_equal(first, ShuffledBatches(100, 10, seed=2).indices(7))


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(12, None, 12), (None, 1, 13), (None, 2, 25), (None, 0.5, 7)]
)
def test_number_of_steps(steps: int | None, epochs: float | None, expected: int) -> None:
    assert num_steps(SimpleNamespace(steps=steps, epochs=epochs, batch_size=8), num_examples=100) == expected


def factors(schedule: str, steps: int = 10, **changes: Any) -> list[float]:
    config = SimpleNamespace(
        schedule=schedule, **{"warmup_steps": 0, "warmup_share": None, "final_learning_rate": None} | changes
    )
    return [learning_rate_factor(config, step, steps) for step in range(1, steps + 1)]


def test_schedules() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert factors(schedule, warmup_steps=2)[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert set(factors("constant", warmup_steps=2)[2:]) == {1.0}
    assert factors("linear", warmup_steps=2)[-1] == pytest.approx(1 / 8)
    assert factors("cosine", warmup_steps=2)[6] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="'steps' is not one of constant, linear, cosine, onecycle"):
        factors("steps")


def test_warm_up_is_as_many_steps_as_its_share_of_all() -> None:
    for schedule in ("constant", "linear", "cosine", "onecycle"):
        assert factors(schedule, 20, warmup_share=0.3) == factors(schedule, 20, warmup_steps=6)


def test_cosine_falls_to_its_floor_and_no_further() -> None:
    values = factors("cosine", 1000, final_learning_rate=0.1)
    assert values[0] == 1
    assert values[500] == pytest.approx(0.55)
    assert 0.1 <= values[-1] < 0.1001
