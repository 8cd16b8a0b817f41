import pytest

from privlm.report.claims import in_words, judge

pytestmark = pytest.mark.torch_free


def test_a_difference_of_one_sign_at_every_seed_decides():
    higher = {0: 0.97, 1: 0.98, 2: 0.96}
    than = {seed: value - 0.01 for seed, value in higher.items()}
    judgement = judge(higher, than)
    assert judgement.verdict == "holds"
    assert judgement.difference == pytest.approx(0.01)
    assert (judgement.ci_low, judgement.ci_high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert judge(than, higher).verdict == "does not hold"


def test_differences_of_both_signs_leave_it_open():
    judgement = judge({0: 0.97, 1: 0.96, 2: 0.98}, {0: 0.96, 1: 0.97, 2: 0.98})
    assert judgement.verdict == "not decidable"
    assert judgement.ci_low < 0 < judgement.ci_high


def test_rows_that_are_equal_are_not_higher():
    assert judge(dict.fromkeys(range(5), 0.9), dict.fromkeys(range(5), 0.9)).verdict == "does not hold"


def test_seeds_are_paired_and_too_few_decide_nothing():
    judgement = judge({0: 0.9, 1: 0.8, 2: 0.7}, {1: 0.7, 2: 0.6, 3: 0.1})
    assert (judgement.verdict, judgement.num_seeds) == ("not decidable", 2)
    assert judgement.difference == pytest.approx(0.1)
    assert judgement.ci_low is None


def test_the_bootstrap_covers_the_true_difference():
    """Of 200 experiments with 10 seeds each, about 95 % (the bootstrap of few seeds is narrow, so fewer)."""
    import numpy as np

    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        shared, noise = rng.normal(size=10), rng.normal(0.3, 1, size=10)
        judgement = judge(dict(enumerate(shared + noise)), dict(enumerate(shared)))
        covered += judgement.ci_low <= 0.3 <= judgement.ci_high
    assert 0.84 <= covered / 200 <= 0.98


def test_words():
    assert in_words("A beats B", judge({0: 1.0}, {0: 0.9}), 3) == (
        "claim: A beats B: not decidable, 1 shared seeds of the 3 it takes"
    )
    assert in_words("A beats B", judge({0: 1.0, 1: 1.0, 2: 1.0}, {0: 0.9, 1: 0.9, 2: 0.9}), 3) == (
        "claim: A beats B: holds (difference +0.100 [+0.100, +0.100], 95 % paired bootstrap over 3 seeds)"
    )
