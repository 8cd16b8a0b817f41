"""Bounds from many runs: golden values and the ends of the range."""

import pytest

from privlm.errors import UsageError
from privlm.privacy.audit.many_run import many_run_bound

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize(
    ("false_positives", "false_negatives", "runs", "epsilon"),
    [(10, 300, 1000, 3.600441), (0, 0, 1000, 5.600577), (3, 20, 100, 2.117932)],
)
def test_golden_bounds(false_positives, false_negatives, runs, epsilon):
    bound = many_run_bound(
        num_false_positives=false_positives,
        num_without=runs,
        num_false_negatives=false_negatives,
        num_with=runs,
        delta=1e-5,
    )
    assert bound.epsilon == pytest.approx(epsilon, abs=1e-6)
    if false_positives == 10:
        assert bound.mu == pytest.approx(2.531303, abs=1e-6)


def test_an_attack_that_always_errs_bounds_nothing():
    bound = many_run_bound(num_false_positives=20, num_without=20, num_false_negatives=20, num_with=20, delta=0)
    assert (bound.epsilon, bound.mu) == (0, 0)


def test_impossible_counts_are_refused():
    with pytest.raises(UsageError, match="exceed"):
        many_run_bound(num_false_positives=21, num_without=20, num_false_negatives=0, num_with=20, delta=0)
    with pytest.raises(UsageError, match="without it"):
        many_run_bound(num_false_positives=0, num_without=0, num_false_negatives=0, num_with=20, delta=0)
