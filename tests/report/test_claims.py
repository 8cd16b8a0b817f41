import pytest
from scipy.stats import ttest_1samp

from privlm.report.claims import in_words, judge

pytestmark = pytest.mark.torch_free


def test_a_difference_that_stands_out_from_its_spread_decides():
    higher = {0: 0.970, 1: 0.981, 2: 0.962}
    than = {0: 0.960, 1: 0.970, 2: 0.951}
    judgement = judge(higher, than)
    interval = ttest_1samp([0.010, 0.011, 0.011], 0).confidence_interval(0.95)
    assert judgement.verdict == "holds"
    assert judgement.difference == pytest.approx(0.032 / 3)
    assert (judgement.ci_low, judgement.ci_high) == pytest.approx((interval.low, interval.high))
    assert judge(than, higher).verdict == "does not hold"


def test_one_sign_at_three_seeds_is_not_enough():
    """What resampling three seeds takes for certain: 1 of 4 times it happens by chance."""
    judgement = judge({0: 0.91, 1: 0.93, 2: 0.98}, {0: 0.9, 1: 0.9, 2: 0.9})
    assert judgement.verdict == "not decidable"
    assert judgement.ci_low < 0 < judgement.ci_high


def test_differences_of_both_signs_leave_it_open():
    judgement = judge({0: 0.97, 1: 0.96, 2: 0.98}, {0: 0.96, 1: 0.97, 2: 0.98})
    assert judgement.verdict == "not decidable"
    assert judgement.ci_low < 0 < judgement.ci_high


@pytest.mark.parametrize(("num_seeds", "verdict"), [(5, "not decidable"), (6, "holds")])
def test_equal_differences_have_no_interval_and_are_judged_by_sign_flips(num_seeds, verdict):
    than = {seed: 0.9 + seed / 100 for seed in range(num_seeds)}
    judgement = judge({seed: value + 0.05 for seed, value in than.items()}, than)
    assert (judgement.verdict, judgement.ci_low, judgement.ci_high) == (verdict, None, None)
    assert judgement.p == 2.0 ** (1 - num_seeds)


def test_rows_that_are_equal_decide_nothing():
    judgement = judge(dict.fromkeys(range(9), 0.9), dict.fromkeys(range(9), 0.9))
    assert (judgement.verdict, judgement.p) == ("not decidable", 1)


def test_seeds_are_paired_and_too_few_decide_nothing():
    judgement = judge({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.7, 2: 0.6, 3: 0.1})
    assert (judgement.verdict, judgement.num_seeds) == ("not decidable", 2)
    assert judgement.difference == pytest.approx(0.1)
    assert judgement.ci_low is None


def test_the_interval_covers_the_true_difference_at_three_seeds():
    import numpy as np

    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        shared, noise = rng.normal(size=3), rng.normal(0.3, 1, size=3)
        judgement = judge(dict(enumerate(shared + noise)), dict(enumerate(shared)))
        covered += judgement.ci_low <= 0.3 <= judgement.ci_high
    assert 0.935 <= covered / 2000 <= 0.965


def test_words():
    assert in_words("A beats B", judge({0: 1.0}, {0: 0.9}), 3) == (
        "claim: A beats B: not decidable, 1 shared seeds of the 3 it takes"
    )
    assert in_words("A beats B", judge({0: 1.0, 1: 1.1, 2: 1.05}, {0: 0.9, 1: 0.95, 2: 0.93}), 3) == (
        "claim: A beats B: holds (difference +0.123 [+0.061, +0.186], 95 % paired t interval over 3 seeds)"
    )
    assert in_words("A beats B", judge({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.9, 1: 0.9, 2: 0.9}), 3) == (
        "claim: A beats B: not decidable (difference +0.100 at each of 3 seeds, p 0.250 by sign flips)"
    )
