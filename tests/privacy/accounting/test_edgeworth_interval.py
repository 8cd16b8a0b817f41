"""The interval around the Edgeworth estimate: it holds the truth, and says so where it says nothing."""

import json
import math

import pytest

from privlm.privacy.accounting import Segment, edgeworth, edgeworth_answer, edgeworth_interval, epsilon

pytestmark = pytest.mark.torch_free

SST2 = 2000 / 67349


@pytest.mark.parametrize(
    ("q", "sigma", "steps", "absent", "present"),
    [
        (SST2, 0.8, 1684, 0.21614, 0.26217),
        (SST2, 1.2, 1684, 0.10514, 0.11132),
        (0.0015625, 0.8, 65536, 0.047702, 0.052637),
        (0.01, 2.0, 10**6, 0.00061240, 0.00061335),
    ],
)
def test_golden_distances(q, sigma, steps, absent, present):
    sides = edgeworth.losses(Segment(q, sigma, steps))
    found = [edgeworth_interval.distance(edgeworth_interval.moments(*side), steps) for side in sides]
    assert found == pytest.approx([absent, present], rel=2e-4)


@pytest.mark.parametrize(("sigma", "delta"), [(0.8, 1e-5), (1.2, 1e-5)])
def test_nothing_is_known_of_thousands_of_steps_at_small_delta(sigma, delta):
    answer = edgeworth_answer([Segment(SST2, sigma, 1684)], delta)
    assert answer.eeai_upper == math.inf
    assert answer.eeai_lower < answer.certified_pld
    assert json.loads(json.dumps(answer.to_dict(), allow_nan=False))["eeai_upper"] == "inf"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("segment", "lower", "upper", "estimate"),
    [
        (Segment(0.0015625, 0.8, 65536), 0.2603, 1.6068, 0.72499),
        (Segment(0.01, 2.0, 10**6), 7.132, 21.007, 20.0986),
    ],
)
def test_golden_intervals_hold_the_truth(segment, lower, upper, estimate):
    answer = edgeworth_answer([segment], 0.1)
    assert (answer.eeai_lower, answer.eeai_upper) == pytest.approx((lower, upper), abs=1e-3)
    assert answer.estimate.epsilon == pytest.approx(estimate, abs=1e-4)
    exact = epsilon([segment], 0.1, accountant="contour").epsilon
    assert answer.eeai_lower < exact < answer.eeai_upper
    assert exact <= answer.certified_pld
    assert answer.to_dict()["guarantee"] is False


def test_directions_bracket_both():
    run = [Segment(0.0015625, 0.8, 65536)]
    both, add, remove = (edgeworth_interval.interval(run, direction, 0.1) for direction in ("both", "add", "remove"))
    assert both == (max(add[0], remove[0]), max(add[1], remove[1]))
    assert add[1] != remove[1]


@pytest.mark.parametrize(
    ("run", "adjacency", "bounds"),
    [
        ([], "add_remove", (0.0, 0.0)),
        ([Segment(0.1, 0.0, 5)], "add_remove", (0.0, math.inf)),
        ([Segment(0.01, 1.0, 500), Segment(0.02, 1.5, 500)], "add_remove", (0.0, math.inf)),
        ([Segment(0.01, 1.0, 500)], "replace_one", (0.0, math.inf)),
    ],
)
def test_where_there_is_no_theorem(run, adjacency, bounds):
    answer = edgeworth_answer(run, 0.1, adjacency=adjacency)
    assert (answer.eeai_lower, answer.eeai_upper) == bounds


def test_replacing_a_record_on_full_data_has_an_interval():
    answer = edgeworth_answer([Segment(1.0, 40.0, 1600)], 0.1, adjacency="replace_one")
    exact = epsilon([Segment(1.0, 20.0, 1600)], 0.1).epsilon
    assert answer.eeai_lower < exact < answer.eeai_upper < math.inf
