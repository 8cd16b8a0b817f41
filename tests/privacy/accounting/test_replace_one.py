"""Replacing a record: the pair that bounds it, what every accountant makes of it, and the noise that it asks for."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from scipy.stats import norm

from privlm.privacy.accounting import Segment, edgeworth_answer, epsilon, noise_multiplier
from privlm.privacy.accounting.loss import deltas, loss_in, noise_of
from privlm.privacy.accounting.moments import Moments

pytestmark = pytest.mark.torch_free

# (q, sigma, T) -> epsilon at delta 1e-5, by dp-accounting's pessimistic PLD under REPLACE_ONE at 1e-4
GOLDEN = {
    (0.01, 1.0, 100): 0.895126,
    (0.01, 1.0, 1000): 2.843446,
    (2000 / 67349, 1.8662, 1684): 5.996243,
    (0.25, 30.0, 5): 0.116086,
    (1.0, 10.0, 100): 9.997256,
}


@pytest.mark.parametrize(("setting", "golden"), GOLDEN.items())
def test_the_certified_epsilon_is_that_of_dp_accounting(setting, golden):
    run = [Segment(*setting)]
    answer = epsilon(run, 1e-5, adjacency="replace_one", discretization=1e-4)
    assert answer.guarantee
    assert answer.epsilon == pytest.approx(golden, abs=2e-6)
    q, sigma, steps = setting
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        sampling_prob=q,
        value_discretization_interval=1e-3,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    ).self_compose(steps)
    coarse = epsilon(run, 1e-5, adjacency="replace_one", discretization=1e-3).epsilon
    bound = theirs.get_epsilon_for_delta(1e-5)
    assert bound - 1e-4 < coarse <= bound + 1e-6  # below it where full batches are joined before rounding


@pytest.mark.parametrize("setting", GOLDEN)
def test_every_accountant_speaks_of_the_same_pair(setting):
    def of(accountant):
        return epsilon([Segment(*setting)], 1e-5, adjacency="replace_one", accountant=accountant)

    golden = GOLDEN[setting]
    assert golden - 2e-4 <= of("contour").epsilon <= golden + 1e-6
    for accountant, most in (("rdp", 1.5), ("prv", 1.1)):
        assert of(accountant).guarantee
        assert golden - 1e-6 <= of(accountant).epsilon <= golden * most + 0.02
    for accountant in ("edgeworth", "gdp"):
        assert not of(accountant).guarantee
        assert of(accountant).epsilon == pytest.approx(golden, rel=0.12)


def test_a_replacement_costs_between_one_change_and_two():
    for setting in GOLDEN:
        run = [Segment(*setting)]
        once = epsilon(run, 1e-5, discretization=1e-3).epsilon
        assert once < epsilon(run, 1e-5, adjacency="replace_one", discretization=1e-3).epsilon
        half = epsilon(run, 1e-5 / (1 + math.exp(once * 1.2)), discretization=1e-3).epsilon
        assert epsilon(run, 1e-5, adjacency="replace_one", discretization=1e-3).epsilon < 2 * half


def mixture(points, q, mean):
    """Density of (1 - q) N(0, 1) + q N(mean, 1) at points of the plane."""
    at = norm.pdf(points[:, 0] - mean[0]) * norm.pdf(points[:, 1] - mean[1])
    return (1 - q) * norm.pdf(points[:, 0]) * norm.pdf(points[:, 1]) + q * at


def test_no_two_records_are_told_apart_better_than_opposite_ones():
    """The hockey-stick divergence of any two gradients in the clipping ball, integrated, below that of the pair."""
    rng = np.random.default_rng(0)
    axis = np.arange(-11.0, 11.0, 0.1)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for _ in range(40):
        q, mu = rng.uniform(0.01, 1.0), rng.uniform(0.3, 3.0)
        angles, lengths = rng.uniform(0, 2 * math.pi, 2), mu * rng.choice([0.0, 0.5, 1.0], 2)
        u, v = lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        level = rng.normal(0.0, 1.5)
        gap = mixture(points, q, u) - math.exp(level) * mixture(points, q, v)
        divergence = 0.01 * np.maximum(gap, 0.0).sum()
        [bound] = deltas("replace", np.array([level]), Segment(q, 1 / mu, 1))
        assert divergence <= bound + 2e-3
    opposite = mixture(points, 0.3, (2.0, 0.0)) - math.e * mixture(points, 0.3, (-2.0, 0.0))
    [bound] = deltas("replace", np.array([1.0]), Segment(0.3, 0.5, 1))
    assert 0.01 * np.maximum(opposite, 0.0).sum() == pytest.approx(bound, abs=2e-3)


@pytest.mark.parametrize("direction", ["remove", "add", "replace"])
@pytest.mark.parametrize(("q", "sigma"), [(1e-6, 0.3), (0.01, 1.0), (0.5, 40.0), (1 - 1e-9, 2.0), (1.0, 0.7)])
def test_the_noise_of_a_loss_is_the_inverse_of_the_loss_of_a_noise(direction, q, sigma):
    x = np.linspace(-8.0, 8.0, 33)
    losses = loss_in(direction, x, q, 1 / sigma)
    again = loss_in(direction, noise_of(direction, losses, Segment(q, sigma, 1)), q, 1 / sigma)
    assert again == pytest.approx(losses, rel=1e-7, abs=1e-12)
    assert (np.diff(losses) >= 0).all()


def test_the_divergences_of_a_removed_record_are_those_of_dp_accounting():
    """The moments that replace_one takes its Renyi divergences from, where others have them too.

    Between whole orders dp-accounting gives a bound.
    """
    orders = [1.5, 2.0, 2.5, 4.0, 16.0, 64.0]
    theirs = RdpAccountant(orders=orders)
    theirs.compose(PoissonSampledDpEvent(0.02, GaussianDpEvent(0.8)), 7)
    moments = Moments([Segment(0.02, 0.8, 7)], "remove")
    for order, golden in zip(orders, theirs._rdp, strict=True):
        found = moments.derivatives(order - 1)[0] / (order - 1)
        assert found == pytest.approx(golden, rel=1e-9) if order.is_integer() else 0.8 * golden < found < golden
    full = Moments([Segment(1.0, 2.0, 3)], "replace").derivatives(4.0)[0] / 4.0
    assert full == pytest.approx(3 * 5.0 * 2 / 2.0**2, rel=1e-9)  # T a (2 mu)^2 / 2 at order 5


@pytest.mark.parametrize("target", [1.0, 30.0])
def test_the_noise_of_a_budget_is_certified(target):
    setting = {"delta": 1e-5, "sampling_rate": 0.02, "steps": 400, "adjacency": "replace_one"}
    found = noise_multiplier(target_epsilon=target, **setting)
    assert found.guarantee
    assert target - 1e-3 <= found.epsilon <= target
    assert (
        noise_multiplier(target_epsilon=target, accountant="rdp", **setting).noise_multiplier > found.noise_multiplier
    )


def test_the_interval_of_an_estimate_holds_the_certified_epsilon():
    answer = edgeworth_answer([Segment(0.0015625, 0.8, 65536)], 0.1, adjacency="replace_one")
    assert answer.eeai_lower < answer.certified_pld < answer.eeai_upper < math.inf
