"""The noise of a budget: found for every accountant, never over the budget, refused where there is none."""

import math

import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import ACCOUNTANTS, Segment, epsilon, noise_multiplier, num_steps

pytestmark = pytest.mark.torch_free

SST2 = 67_349
SHORT = {"delta": 0.5 / SST2, "sampling_rate": 1000 / SST2, "steps": 203}


@pytest.mark.parametrize("target", [0.2, *(pytest.param(target, marks=pytest.mark.medium) for target in (3.0, 8.0))])
@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_budget_is_kept_and_used(accountant, target):
    found = noise_multiplier(target_epsilon=target, accountant=accountant, **SHORT)
    run = [Segment(SHORT["sampling_rate"], found.noise_multiplier, SHORT["steps"])]
    assert target - 1e-3 <= found.epsilon <= target
    assert epsilon(run, SHORT["delta"], accountant=accountant).epsilon == found.epsilon
    assert found.guarantee == (accountant in ("pld", "rdp"))
    assert found.achieved.segments == tuple(run)


def test_a_short_run_breaks_the_budget_of_an_estimate():
    estimate = noise_multiplier(target_epsilon=8, accountant="edgeworth", order=2, **SHORT)
    assert estimate.noise_multiplier == pytest.approx(0.4915, abs=5e-4)
    run = [Segment(SHORT["sampling_rate"], estimate.noise_multiplier, SHORT["steps"])]
    assert epsilon(run, SHORT["delta"], discretization=1e-3).epsilon == pytest.approx(10.76, abs=0.02)
    certified = [Segment(SHORT["sampling_rate"], 0.5440 + 1e-3, SHORT["steps"])]
    assert epsilon(certified, SHORT["delta"], discretization=1e-3).epsilon < 8


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_small_noise_is_in_reach(order):
    found = noise_multiplier(target_epsilon=200, accountant="edgeworth", order=order, **SHORT)
    assert found.noise_multiplier < 0.3
    assert found.epsilon == pytest.approx(200, abs=1e-3)


def test_replace_one():
    setting = {"target_epsilon": 3.0, "delta": 1e-5, "sampling_rate": 1.0, "steps": 100}
    add_remove = noise_multiplier(**setting).noise_multiplier
    assert noise_multiplier(**setting, adjacency="replace_one").noise_multiplier == pytest.approx(
        2 * add_remove, rel=1e-3
    )


@pytest.mark.parametrize("nothing", [{"steps": 0}, {"sampling_rate": 0.0}])
def test_nothing_to_hide_needs_no_noise(nothing):
    found = noise_multiplier(target_epsilon=1.0, **(SHORT | nothing))
    assert (found.noise_multiplier, found.epsilon) == (0.0, 0.0)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_targets_that_are_none(target):
    with pytest.raises(UsageError, match=r"privacy\.epsilon"):
        noise_multiplier(target_epsilon=target, **SHORT)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_targets_out_of_reach(accountant):
    with pytest.raises(UsageError, match=r"privacy\.epsilon: no noise_multiplier up to 10000"):
        noise_multiplier(target_epsilon=1e-3, delta=1e-9, sampling_rate=1.0, steps=10**6, accountant=accountant)


def test_a_record_that_is_hardly_ever_drawn():
    with pytest.raises(UsageError, match=r"privacy\.delta"):
        noise_multiplier(target_epsilon=3.0, delta=1e-5, sampling_rate=1e-6, steps=3)


def test_a_target_that_needs_next_to_no_noise():
    with pytest.raises(UsageError, match=r"privacy\.epsilon: 1e\+06 holds with a noise_multiplier below 0\.01"):
        noise_multiplier(target_epsilon=1e6, accountant="edgeworth", delta=1e-5, sampling_rate=1.0, steps=1)


@pytest.mark.parametrize(
    ("epochs", "size", "batch", "steps"),
    [
        (50, SST2, 2000, 1684),
        (3, SST2, 1000, 203),
        (6, 104_743, 2000, 315),
        (0.1, 300, 10, 3),
        (0, 10, 5, 0),
        (2, 10, 5, 4),
    ],
)
def test_number_of_steps(epochs, size, batch, steps):
    assert num_steps(epochs, size, batch) == steps


@pytest.mark.parametrize("accountant", ["pld", pytest.param("rdp", marks=pytest.mark.medium)])
def test_what_was_spent_before_is_a_part_of_the_budget(accountant):
    setting = {"target_epsilon": 3.0, "accountant": accountant, **SHORT}
    spent = [Segment(0.01, 1.2, 100), Segment(0.001, 4.0, 1)]
    found = noise_multiplier(**setting, spent=spent)
    run = [*spent, Segment(SHORT["sampling_rate"], found.noise_multiplier, SHORT["steps"])]
    assert 3.0 - 1e-3 <= epsilon(run, SHORT["delta"], accountant=accountant).epsilon == found.epsilon <= 3.0
    assert found.noise_multiplier > noise_multiplier(**setting).noise_multiplier


def test_a_budget_that_is_spent_is_refused_with_its_number():
    spent = [Segment(0.1, 1.0, 100)]
    gone = epsilon(spent, SHORT["delta"]).epsilon
    for target in (3.0, gone):
        with pytest.raises(UsageError, match=rf"privacy\.epsilon={target:g}: earlier releases have spent {gone:.4f}"):
            noise_multiplier(target_epsilon=target, spent=spent, **SHORT)
