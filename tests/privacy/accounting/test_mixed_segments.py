"""Random lists of segments, short beside long and rare beside full: never below what dp-accounting shows to be lost."""

import functools
import random

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution

from privlm.privacy.accounting import Segment, epsilon, pld

pytestmark = pytest.mark.torch_free

RELATIONS = {
    "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": NeighboringRelation.REPLACE_ONE,
}


def random_case(number):
    """(segments, delta, adjacency), of an epsilon that a grid can hold."""
    rng = random.Random(number)
    adjacency = rng.choice(list(RELATIONS))
    delta = 10 ** rng.uniform(-8, -3)
    while True:
        segments = []
        for _ in range(rng.randint(1, 4)):
            rate = rng.choice((10 ** rng.uniform(-5, 0), 10 ** rng.uniform(-5, 0), 1.0))
            segments.append(Segment(rate, 0.3 * (500 / 3) ** rng.random(), round(10 ** rng.uniform(0, 5))))
        if epsilon(segments, delta, accountant="rdp", adjacency="replace_one").epsilon < 40:
            return segments, delta, adjacency


def theirs(segments, delta, adjacency, interval, *, pessimistic):
    runs = [
        privacy_loss_distribution.from_gaussian_mechanism(
            segment.noise_multiplier,
            sampling_prob=segment.sampling_rate,
            pessimistic_estimate=pessimistic,
            value_discretization_interval=interval,
            use_connect_dots=pessimistic,
            neighboring_relation=RELATIONS[adjacency],
        ).self_compose(segment.steps)
        for segment in segments
    ]
    return functools.reduce(lambda one, other: one.compose(other), runs).get_epsilon_for_delta(delta)


def check(numbers, interval):
    for number in numbers:
        segments, delta, adjacency = random_case(number)
        ours = epsilon(segments, delta, adjacency=adjacency, discretization=interval)
        case = f"case {number}: {segments}, delta {delta}, {adjacency}"
        assert ours.guarantee, case
        assert ours.epsilon >= theirs(segments, delta, adjacency, interval, pessimistic=False), case
        slack = delta - 2 * pld.round_off(segments)  # theirs is not read below delta, and has round-off too
        assert ours.epsilon <= theirs(segments, slack, adjacency, interval, pessimistic=True) + 1e-5, case


def test_mixed_segments_lie_between_the_bounds_of_dp_accounting():
    check(range(30), 5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, 20))
def test_three_hundred_mixed_segments_lie_between_the_bounds_of_dp_accounting(first):
    check(range(first, first + 20), 1e-3)


@pytest.mark.parametrize("adjacency", RELATIONS)
@pytest.mark.parametrize(
    "run", [[(0.01, 1.0, 1000), (0.01, 4.0, 1)], [(0.25, 1.0, 4), (0.25, 30.0, 1)], [(0.01, 1.0, 1000), (1e-5, 1.0, 1)]]
)
def test_a_loss_of_few_points_composes_with_a_long_one(run, adjacency):
    run = [Segment(*part) for part in run]
    whole = epsilon(run, 1e-5, adjacency=adjacency).epsilon
    alone = epsilon(run[:1], 1e-5, adjacency=adjacency).epsilon
    assert alone <= whole <= alone + 0.1
    assert whole == pytest.approx(epsilon(run, 1e-5, adjacency=adjacency, accountant="contour").epsilon, abs=1e-4)
