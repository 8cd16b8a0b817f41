"""Epsilons against values computed independently: closed forms, and exact integration where there is none."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from privlm.privacy.accounting import Segment, edgeworth, epsilon

pytestmark = pytest.mark.torch_free

QNLI = 104_743

# (q, sigma, T, delta): exact remove, exact add, RDP, GDP, Edgeworth of order 0 to 3
GOLDEN = {
    (2000 / 67349, 1.0, 1684, 1e-5): (8.041451, 6.506979, 8.78149, 7.60436, 7.96021, 8.28863, 8.39243, 8.35037),
    (2000 / 392702, 0.7, 9818, 1e-5): (6.598810, 5.008884, 7.34858, 5.98045, 6.31012, 6.65649, 6.84073, 6.92337),
    (1000 / QNLI, 0.55, 315, 0.5 / QNLI): (6.802060, 1.550439, 8.16081, 3.86863, 3.79138, 4.32627, 4.77507, 5.18089),
    (0.01, 1.0, 1000, 1e-5): (1.828237, 1.416662, 2.10137, 1.61771, 1.79415, 1.89478, 1.93155, 1.92104),
    (0.01, 2.0, 20000, 1e-5): (3.186900, 3.125951, 3.45542, 3.16442, 3.23295, 3.19563, 3.18741, 3.18691),
    (1.0, 10.0, 100, 1e-5): (4.377178, 4.377178, 4.72851, 4.38988, 4.377178, 4.377178, 4.377178, 4.377178),
}


@pytest.mark.parametrize(("setting", "golden"), GOLDEN.items())
def test_golden_epsilons(setting, golden):
    q, sigma, steps, delta = setting
    remove, add, rdp, gdp, *expansions = golden
    run = [Segment(q, sigma, steps)]

    certified = epsilon(run, delta)
    assert certified.guarantee
    assert remove - 1e-6 <= certified.epsilon <= remove + 2e-4  # never below the truth, and close to it
    in_one_direction = epsilon(run, delta, direction="add", discretization=1e-4)
    assert add - 1e-6 <= in_one_direction.epsilon <= add + 2e-4
    assert not in_one_direction.guarantee

    renyi = epsilon(run, delta, accountant="rdp")
    assert renyi.guarantee
    assert rdp - 5e-3 <= renyi.epsilon <= rdp + 1e-3
    estimates = [epsilon(run, delta, accountant="gdp")]
    estimates += [epsilon(run, delta, accountant="edgeworth", order=order) for order in range(4)]
    assert [estimate.epsilon for estimate in estimates] == pytest.approx([gdp, *expansions], abs=1e-4)
    assert not any(estimate.guarantee for estimate in estimates)
    assert all("not a guarantee" in estimate.notes[0] for estimate in estimates)


def test_mixed_schedule():
    run = [Segment(0.01, 1.0, 500), Segment(0.02, 1.5, 500)]
    assert epsilon(run, 1e-5).epsilon == pytest.approx(1.89748, abs=2e-4)
    assert epsilon(run, 1e-5, accountant="rdp").epsilon == pytest.approx(2.14767, abs=1e-3)
    for order, golden in enumerate([1.91294, 1.97915, 1.97485, 1.94036]):
        assert epsilon(run, 1e-5, accountant="edgeworth", order=order).epsilon == pytest.approx(golden, abs=1e-4)


@pytest.mark.parametrize(
    ("mu", "delta", "golden"), [(1, 1e-5, 4.377178), (0.5, 1e-5, 1.993091), (2, 1e-5, 9.997256), (2, 1e-6, 10.997151)]
)
@pytest.mark.parametrize("accountant", ["pld", "edgeworth"])
def test_full_batches_are_the_analytic_gaussian(accountant, mu, delta, golden):
    run = [Segment(1.0, 10 / (0.6 * mu), 100), Segment(1.0, 5 / (0.8 * mu), 25)]  # squares of mu add: 0.36 + 0.64
    assert epsilon(run, delta, accountant=accountant).epsilon == pytest.approx(golden, abs=1e-5)


def hockey_stick(eps, q, mu, direction):
    """delta(eps) of one step, from the point where the privacy loss crosses eps."""
    sign = 1 if direction == "remove" else -1
    level = math.exp(sign * eps) - 1 + q
    if level <= 0:
        return 0.0
    x = (math.log(level / q) + mu**2 / 2) / mu
    if direction == "remove":
        return q * norm.sf(x - mu) + (1 - q) * norm.sf(x) - math.exp(eps) * norm.sf(x)
    return norm.cdf(x) - math.exp(eps) * ((1 - q) * norm.cdf(x) + q * norm.cdf(x - mu))


@pytest.mark.parametrize(
    ("q", "sigma", "direction", "golden"),
    [
        (0.01, 1, "remove", 0.199450),
        (0.01, 1, "add", 0.009054),
        (0.1, 0.5, "remove", 6.575540),
        (0.1, 0.5, "add", 0.104867),
    ],
)
def test_one_step_closed_form(q, sigma, direction, golden):
    exact = brentq(lambda eps: hockey_stick(eps, q, 1 / sigma, direction) - 1e-5, 0, 20)
    assert exact == pytest.approx(golden, abs=1e-6)
    found = epsilon([Segment(q, float(sigma), 1)], 1e-5, direction=direction, discretization=1e-4).epsilon
    assert exact - 1e-9 <= found <= exact + 1e-5


def test_cumulants_of_one_step():
    absent, present = edgeworth.cumulants(Segment(0.01, 1.0, 1))
    golden_absent = [-8.188976914e-05, 1.600866477e-04, 1.064838526e-05, 1.625807439e-06, 4.43032047e-07]
    golden_present = [8.381220765e-05, 1.716305062e-04, 1.253179645e-05, 2.183259468e-06, 6.986688629e-07]
    np.testing.assert_allclose(absent, golden_absent, rtol=1e-8)
    np.testing.assert_allclose(present, golden_present, rtol=1e-8)


@pytest.mark.medium
def test_finer_grids_are_tighter_in_very_long_runs():
    run = [Segment(0.001, 1.0, 1_000_000)]
    assert epsilon(run, 1e-6, discretization=1e-3).epsilon == pytest.approx(7.0832, abs=1e-3)
    certified = epsilon(run, 1e-6)
    assert certified.discretization == 2e-5
    assert 6.6943 <= certified.epsilon <= 6.6950


def test_small_noise_does_not_overflow():
    run = [Segment(0.03, 0.25, 1684)]
    assert epsilon(run, 1e-5, discretization=1e-3).epsilon == pytest.approx(407.78, abs=0.01)
    assert epsilon(run, 1e-5, accountant="edgeworth").epsilon == pytest.approx(405.43, abs=0.01)
    assert 407.78 < epsilon(run, 1e-5, accountant="rdp").epsilon < 500


def test_an_expansion_finds_roots_beyond_any_fixed_ceiling():
    run = [Segment(0.03, 0.4, 1684)]
    assert epsilon(run, 1e-5, accountant="edgeworth").epsilon == pytest.approx(
        epsilon(run, 1e-5, discretization=1e-3).epsilon, rel=0.02
    )
    assert epsilon(run, 1e-5, accountant="edgeworth").epsilon > 60
