"""The clients of a round: numbers, frequencies, keys, and global generators that nobody touches."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from privlm.errors import UsageError
from privlm.federated.sampling import SAMPLINGS, sampled

pytestmark = pytest.mark.torch_free

CLIENTS = [f"site {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("fraction", "number"), [(1.0, 20), (0.05, 1), (0.01, 1), (0.051, 2), (0.15, 3), (0.35, 7), (0.3, 6), (0.55, 11)]
)
def test_a_fixed_sample_has_the_ceiling_of_its_share(fraction: float, number: int) -> None:
    """Some of these products are above the whole number as floats, or int() would cut them."""
    drawn = sampled(CLIENTS, fraction, 0, 0, "fixed")
    assert len(set(drawn)) == len(drawn) == number
    assert drawn == [client for client in CLIENTS if client in drawn]


def test_a_tenth_of_thirty_clients_is_three() -> None:
    assert math.ceil(0.1 * 30) == 3
    assert math.ceil(0.07 * 100) == 8  # the float is 7.000000000000001
    assert len(sampled([str(number) for number in range(100)], 0.07, 0, 0, "fixed")) == 7
    assert len(sampled([str(number) for number in range(100)], np.float64(0.07), 0, 0, "fixed")) == 7


@pytest.mark.parametrize("kind", ["fixed", "poisson"])
def test_every_client_is_drawn_at_the_fraction(kind: str) -> None:
    rounds, fraction = 2000, 0.3
    table = np.array([[client in drawn for client in CLIENTS] for drawn in draws(kind, rounds, fraction)])
    assert np.abs(table.mean(0) - fraction).max() < 4.5 * math.sqrt(fraction * (1 - fraction) / rounds)
    sizes = table.sum(1)
    if kind == "fixed":
        assert set(sizes) == {6}
    else:
        assert sizes.var() == pytest.approx(20 * fraction * (1 - fraction), rel=0.15)


def draws(kind: str, rounds: int, fraction: float) -> list[list[str]]:
    return [sampled(CLIENTS, fraction, number, 7, kind) for number in range(rounds)]


def test_the_coin_of_a_client_knows_nothing_of_the_others() -> None:
    for number in range(50):
        of_all = sampled(CLIENTS, 0.4, number, 1, "poisson")
        assert sampled(CLIENTS[1:], 0.4, number, 1, "poisson") == [name for name in of_all if name != CLIENTS[0]]


def test_a_poisson_round_may_be_empty() -> None:
    assert [] in [sampled(CLIENTS[:2], 0.1, number, 0, "poisson") for number in range(20)]
    assert sampled(CLIENTS, 1.0, 0, 0, "poisson") == CLIENTS


@pytest.mark.parametrize("kind", ["fixed", "poisson"])
def test_samples_depend_on_seed_and_round_only(kind: str) -> None:
    first = draws(kind, 30, 0.4)
    assert [sampled(CLIENTS, 0.4, number, 7, kind) for number in reversed(range(30))] == first[::-1]
    assert len({tuple(drawn) for drawn in first}) > 25
    assert [sampled(CLIENTS, 0.4, number, 8, kind) for number in range(30)] != first


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.5, 1.0])
def test_as_released_is_the_draw_of_a_global_generator_seeded_with_the_round(fraction: float) -> None:
    kept = np.random.get_state()
    for number in range(10):
        np.random.seed(number)
        drawn = np.random.choice(np.arange(20), max(int(fraction * 20), 1), replace=False)
        expected = [CLIENTS[index] for index in sorted(drawn)]
        assert sampled(CLIENTS, fraction, number, 5, "as_released") == expected
    np.random.set_state(kept)


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_global_generators_are_untouched(kind: str) -> None:
    numpys, pythons = np.random.get_state(), random.getstate()
    sampled(CLIENTS, 0.5, 3, 0, kind)
    assert random.getstate() == pythons
    np.testing.assert_equal(np.random.get_state(), numpys)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match=rf"federated\.fraction={fraction}: .* above 0 and at most 1"):
        sampled(CLIENTS, fraction, 0, 0, "fixed")


def test_no_client_and_two_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"federated\.num_clients"):
        sampled([], 0.5, 0, 0, "fixed")
    with pytest.raises(UsageError, match="two clients are called 'a'"):
        sampled(["a", "b", "a"], 0.5, 0, 0, "fixed")
