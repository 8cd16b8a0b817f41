"""The one-run audit: golden bounds, monotony, and validity against mechanisms whose privacy is known."""

import numpy as np
import pytest
from scipy.special import ndtr

from privlm.errors import UsageError
from privlm.privacy.accounting import Segment
from privlm.privacy.accounting.gdp import gaussian_epsilon
from privlm.privacy.audit.one_run import ABSTAIN, IN, OUT, epsilon_lower_bound, guess, mu_lower_bound, rejects
from privlm.privacy.audit.trade_off import GaussianTradeOff, PairsTradeOff, certified_trade_off

pytestmark = pytest.mark.torch_free

M, K, DELTA = 1000, 100, 1e-5


@pytest.mark.parametrize(
    ("num_canaries", "num_guesses", "num_correct", "delta", "bound"),
    [
        (100, 100, 100, 0, 3.492965),
        (1000, 1000, 1000, 0, 5.809068),
        (1000, 1000, 1000, 1e-5, 5.782283),
        (1000, 200, 200, 1e-5, 4.166490),
        (1000, 1000, 500, 1e-5, 0),
        (2000, 300, 270, 1e-5, 1.869448),
        (2000, 2000, 1300, 1e-6, 0.541004),
        (500, 100, 75, 0, 0.702214),
    ],
)
def test_golden_epsilons(num_canaries, num_guesses, num_correct, delta, bound):
    found = epsilon_lower_bound(num_canaries, num_guesses, num_correct, delta=delta)
    assert found == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize(
    ("num_canaries", "num_guesses", "num_correct", "mu", "epsilon"),
    [
        (1000, 1000, 600, 0.163850, 0.583540),
        (2000, 300, 270, 0.689216, 2.858988),
        (500, 100, 75, 0.297544, 1.121583),
        (1000, 200, 200, 1.536398, 7.256823),
    ],
)
def test_golden_mus(num_canaries, num_guesses, num_correct, mu, epsilon):
    found = mu_lower_bound(num_canaries, num_guesses, num_correct)
    assert found == pytest.approx(mu, abs=1e-6)
    assert gaussian_epsilon(found, 1e-5) == pytest.approx(epsilon, abs=2e-6)


def test_guesses_no_better_than_a_coin_refute_nothing():
    assert mu_lower_bound(1000, 1000, 500) == 0
    assert [epsilon_lower_bound(M, 200, v, delta=DELTA) for v in (0, 50, 100)] == [0, 0, 0]


def test_bound_grows_with_right_guesses_and_falls_with_delta():
    by_correct = [epsilon_lower_bound(M, 200, v, delta=DELTA) for v in range(120, 201, 10)]
    by_delta = [epsilon_lower_bound(M, 200, 190, delta=delta) for delta in (0, 1e-6, 1e-5, 1e-4, 1e-3)]
    assert by_correct == sorted(by_correct)
    assert by_correct[0] < by_correct[-1]
    assert by_delta == sorted(by_delta, reverse=True)
    assert by_delta[0] > by_delta[-1]


def test_bound_of_a_million_canaries_is_finite_and_stable():
    assert epsilon_lower_bound(10**6, 10**6, 10**6, delta=0) == pytest.approx(-np.log(np.expm1(-np.log(0.05) / 10**6)))


def test_trade_off_from_pairs_equals_the_gaussian_one():
    mu, epsilons = 1.3, np.linspace(0, 20, 100_001)
    deltas = ndtr(mu / 2 - epsilons / mu) - np.exp(epsilons) * ndtr(-mu / 2 - epsilons / mu)
    pairs = PairsTradeOff(epsilons, deltas)
    for y, inverse in ((0.02, 0.00039862), (0.3, 0.0340458), (0.9, 0.4926406)):
        assert pairs.inverse(y) == pytest.approx(inverse, abs=1e-6)
        assert GaussianTradeOff(mu).inverse(y) == pytest.approx(inverse, abs=1e-6)


def test_certified_curve_of_a_gaussian_step_is_a_little_below_the_exact_one():
    curve = certified_trade_off([Segment(1.0, 1.0, 1)])
    for y in (0.05, 0.3, 0.9):
        exact = GaussianTradeOff(1.0).inverse(y)
        assert exact - 2e-3 < curve.inverse(y) <= exact


def simulated_guesses(rng, noise_multiplier, *, rate=0.06197, steps=160):
    """Right guesses of 200 about Dirac canaries in `steps` Poisson-sampled Gaussian steps."""
    is_in = rng.random(M) < 0.5
    scores = rng.binomial(steps, rate, M) * is_in + noise_multiplier * np.sqrt(steps) * rng.standard_normal(M)
    guesses = guess(scores, K, K, rng)
    return int(((guesses == IN) & is_in).sum() + ((guesses == OUT) & ~is_in).sum())


def test_right_mechanism_passes_and_a_tenth_of_its_noise_fails():
    rng = np.random.default_rng(0)
    claim = certified_trade_off([Segment(0.06197, 3.1281, 160)])  # epsilon 1 at delta 1e-5
    for multiplier, expected in ((3.1281, False), (0.31281, True)):
        correct = [simulated_guesses(rng, multiplier) for _ in range(100)]
        binary = [epsilon_lower_bound(M, 2 * K, v, delta=DELTA) > 1 for v in correct]
        curve = [rejects(claim, M, 2 * K, v) for v in correct]
        assert sum(flag == expected for flag in binary) >= 95
        assert sum(flag == expected for flag in curve) >= 95


def test_f_dp_test_rarely_rejects_its_own_mechanism():
    rng = np.random.default_rng(1)
    rejected_by_correct = {}
    num_rejected = 0
    for _ in range(2000):
        is_in = rng.random(M) < 0.5
        guesses = guess(is_in + rng.standard_normal(M), K, K, rng)
        correct = int(((guesses == IN) & is_in).sum() + ((guesses == OUT) & ~is_in).sum())
        if correct not in rejected_by_correct:
            rejected_by_correct[correct] = rejects(GaussianTradeOff(1.0), M, 2 * K, correct)
        num_rejected += rejected_by_correct[correct]
    assert num_rejected <= 100


def test_guess_takes_the_ends_and_abstains_between():
    guesses = guess(np.arange(10.0), 2, 3, np.random.default_rng(0))
    assert guesses.tolist() == [OUT] * 3 + [ABSTAIN] * 5 + [IN] * 2


def test_equal_scores_are_guessed_at_random_and_not_by_their_order():
    is_in = np.arange(M) >= M // 2
    guesses = guess(np.zeros(M), K, K, np.random.default_rng(0))
    correct = ((guesses == IN) & is_in).sum() + ((guesses == OUT) & ~is_in).sum()
    assert epsilon_lower_bound(M, 2 * K, int(correct), delta=0) == 0
    assert 60 < correct < 140


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((9, 5, 5, 0.0, 0.95), "10 canaries"),
        ((100, 101, 5, 0.0, 0.95), "decrease"),
        ((100, 50, 51, 0.0, 0.95), "decrease"),
        ((100, 50, 50, 1.0, 0.95), "delta"),
        ((100, 50, 50, 0.0, 1.0), "confidence"),
    ],
)
def test_impossible_numbers_are_refused(arguments, word):
    *counts, delta, confidence = arguments
    with pytest.raises(UsageError, match=word):
        epsilon_lower_bound(*counts, delta=delta, confidence=confidence)


def test_scores_that_are_nan_and_too_many_guesses_are_refused():
    with pytest.raises(UsageError, match="NaN"):
        guess(np.array([1.0, np.nan]), 1, 1, np.random.default_rng(0))
    with pytest.raises(UsageError, match="fit"):
        guess(np.arange(10.0), 6, 5, np.random.default_rng(0))
