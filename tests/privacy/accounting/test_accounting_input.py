"""Bad input is refused by name; among it, what other accountants have let through."""

import math

import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import ACCOUNTANTS, Segment, check_delta, epsilon, resolve_delta

pytestmark = pytest.mark.torch_free

RUN = [Segment(0.01, 1.0, 100)]


@pytest.mark.parametrize(
    ("segment", "field"),
    [
        ((-0.1, 1.0, 1), "sampling_rate"),
        ((1.5, 1.0, 1), "sampling_rate"),
        ((math.nan, 1.0, 1), "sampling_rate"),
        ((0.1, -1.0, 1), "noise_multiplier"),
        ((0.1, math.nan, 1), "noise_multiplier"),
        ((0.1, 1.0, -1), "steps"),
        ((0.1, 1.0, 2.5), "steps"),
    ],
)
def test_segments(segment, field):
    with pytest.raises(UsageError, match=field):
        Segment(*segment)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("delta", [0.0, 1.0, 1.5, -1e-5, math.nan])
def test_delta_outside_its_range(accountant, delta):
    with pytest.raises(UsageError, match=r"privacy\.delta"):
        epsilon(RUN, delta, accountant=accountant)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"accountant": "moments"}, "accountant must be one of pld, rdp, gdp, edgeworth"),
        ({"accountant": "edgeworth", "order": 4}, "order"),
        ({"direction": "sideways"}, "direction"),
        ({"adjacency": "user"}, "adjacency"),
        ({"accountant": "rdp", "direction": "add"}, "direction=add needs accountant pld, prv, edgeworth or contour"),
        ({"adjacency": "replace_one", "direction": "add"}, "direction=add has no meaning under adjacency=replace_one"),
        ({"accountant": "rdp", "discretization": 1e-3}, "discretization"),
        ({"discretization": 0.0}, "discretization"),
        ({"discretization": math.nan}, "discretization"),
    ],
)
def test_options(options, field):
    with pytest.raises(UsageError, match=field):
        epsilon(RUN, 1e-5, **options)


def test_a_grid_that_does_not_fit_into_memory():
    with pytest.raises(UsageError, match="noise_multiplier is too small for accountant pld"):
        epsilon([Segment(0.5, 1e-3, 1000)], 1e-5)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_no_steps_cost_nothing_at_all(accountant):
    assert epsilon([Segment(0.01, 1.0, 0)], 1e-5, accountant=accountant).epsilon == 0


def test_the_two_forms_of_delta():
    assert resolve_delta("1/2N", 1000) == 5e-4
    assert resolve_delta("1e-5", None) == resolve_delta(1e-5, 10) == 1e-5
    for delta, size in [("1/2N", None), ("1/N", 10), (2, 10), ("0", 10), ("nan", 10)]:
        with pytest.raises(UsageError, match=r"privacy\.delta"):
            resolve_delta(delta, size)


def test_delta_against_the_size_of_the_data():
    assert check_delta(1e-6, 10_000, allow_large_delta=False) == []
    assert check_delta(1e-5, 10_000, allow_large_delta=False) == []  # exactly 1/(10 N)
    [warning] = check_delta(0.5e-4, 10_000, allow_large_delta=False)
    assert "within a factor 10 of 1/N = 0.0001 (N = 10000)" in warning
    for delta in (1e-4, 1e-3):
        with pytest.raises(UsageError, match=r"privacy\.delta.*privacy\.allow_large_delta=true"):
            check_delta(delta, 10_000, allow_large_delta=False)
        [warning] = check_delta(delta, 10_000, allow_large_delta=True)
        assert warning.startswith("delta >= 1/N")
    with pytest.raises(UsageError, match="dataset size"):
        check_delta(1e-5, 0, allow_large_delta=True)
