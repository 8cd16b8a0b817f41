"""The PRV accountant: its interval holds the truth and is as narrow as it says."""

import math

import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import Segment, epsilon, noise_multiplier, prv

pytestmark = pytest.mark.torch_free

QNLI = 104_743
EXACT = {  # (q, sigma, T, delta): exact remove, exact add
    (2000 / 67349, 1.0, 1684, 1e-5): (8.041451, 6.506979),
    (2000 / 392702, 0.7, 9818, 1e-5): (6.598810, 5.008884),
    (1000 / QNLI, 0.55, 315, 0.5 / QNLI): (6.802060, 1.550439),
    (0.01, 2.0, 20000, 1e-5): (3.186900, 3.125951),
    (1.0, 10.0, 100, 1e-5): (4.377178, 4.377178),
    (0.1, 0.5, 1, 1e-5): (6.575540, 0.104867),
}


@pytest.mark.parametrize(("setting", "exact"), EXACT.items())
def test_golden_epsilons_lie_in_the_middle(setting, exact):
    q, sigma, steps, delta = setting
    for direction, truth in zip(("remove", "add"), exact, strict=True):
        lower, estimate, upper = prv.solve([Segment(q, sigma, steps)], direction, delta)
        assert lower < truth < upper
        assert estimate == pytest.approx(truth, abs=2e-4)
        assert upper - lower < 2.2 * prv.EPSILON_ERROR


def test_golden_interval():
    answer = epsilon([Segment(2000 / 67349, 1.0, 1684)], 1e-5, accountant="prv")
    assert answer.epsilon == pytest.approx(8.0519, abs=1e-4)
    assert answer.guarantee
    assert "epsilon lies in [8.0310, 8.0519], by estimate at 8.0414" in answer.notes[0]


def test_segments_compose():
    run = [Segment(0.01, 1.0, 500), Segment(0.02, 1.5, 500)]
    lower, estimate, upper = prv.solve(run, "both", 1e-5)
    assert estimate == pytest.approx(1.89748, abs=2e-4)
    assert prv.solve([*run[1:], Segment(0.01, 1.0, 200), Segment(0.01, 1.0, 300)], "both", 1e-5) == pytest.approx(
        (lower, estimate, upper), abs=1e-6
    )


def test_replacing_a_record():
    full = epsilon([Segment(1.0, 10.0, 100)], 1e-5, accountant="prv", adjacency="replace_one")
    assert 9.997256 < full.epsilon < 9.997256 + 2 * prv.EPSILON_ERROR
    sampled = epsilon([Segment(0.01, 1.0, 100)], 1e-5, accountant="prv", adjacency="replace_one")
    certified = epsilon([Segment(0.01, 1.0, 100)], 1e-5, adjacency="replace_one", discretization=1e-3)
    assert certified.epsilon < sampled.epsilon < certified.epsilon + 2 * prv.EPSILON_ERROR


def test_noise_of_a_budget():
    setting = {"target_epsilon": 3.0, "delta": 1e-5, "sampling_rate": 0.01, "steps": 1000}
    found = noise_multiplier(**setting, accountant="prv")
    assert 3.0 - 1e-3 <= found.epsilon <= 3.0
    assert found.guarantee
    assert found.noise_multiplier > noise_multiplier(**setting).noise_multiplier


def test_where_it_gives_no_guarantee():
    assert not epsilon([Segment(0.01, 1.0, 1000)], 1e-9, accountant="prv").guarantee
    assert epsilon([Segment(0.1, 0.0, 5)], 1e-5, accountant="prv").epsilon == math.inf
    with pytest.raises(UsageError, match="noise_multiplier is too small for accountant prv"):
        epsilon([Segment(0.5, 1e-3, 1000)], 1e-5, accountant="prv")
