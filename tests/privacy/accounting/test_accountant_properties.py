"""What must hold of every accountant: composition, monotonicity, adjacency, the edges of the domain."""

import functools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privlm.privacy.accounting import ACCOUNTANTS, Segment, epsilon

pytestmark = pytest.mark.torch_free

CERTIFIED = {"pld": {"accountant": "pld", "discretization": 1e-3}, "rdp": {"accountant": "rdp"}}
ALL = CERTIFIED | {"gdp": {"accountant": "gdp"}, "edgeworth": {"accountant": "edgeworth"}}

segments = st.builds(
    Segment,
    sampling_rate=st.floats(1e-3, 0.2),
    noise_multiplier=st.floats(0.6, 4.0),
    steps=st.integers(1, 300),
)
deltas = st.floats(1e-8, 1e-3)
few = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.mark.parametrize("options", CERTIFIED.values(), ids=CERTIFIED)
@few
@given(segment=segments, delta=deltas, factor=st.floats(1.1, 3.0))
def test_more_of_anything_costs_more(options, segment, delta, factor):
    q, sigma, steps = segment.sampling_rate, segment.noise_multiplier, segment.steps
    base = epsilon([segment], delta, **options).epsilon
    dearer = [
        epsilon([Segment(q, sigma, math.ceil(steps * factor))], delta, **options),
        epsilon([Segment(q * factor, sigma, steps)], delta, **options),
        epsilon([Segment(q, sigma / factor, steps)], delta, **options),
        epsilon([segment], delta / factor, **options),
    ]
    assert all(answer.epsilon >= base - 1e-9 for answer in dearer)


@pytest.mark.parametrize("options", ALL.values(), ids=ALL)
@few
@given(run=st.lists(segments, min_size=2, max_size=3), delta=deltas)
def test_order_and_splitting_of_segments_change_nothing(options, run, delta):
    whole = epsilon(run, delta, **options).epsilon
    first = run[0]
    assume(first.steps > 1)
    halves = [
        Segment(first.sampling_rate, first.noise_multiplier, 1),
        Segment(first.sampling_rate, first.noise_multiplier, first.steps - 1),
    ]
    assert epsilon(run[::-1], delta, **options).epsilon == whole
    assert epsilon([*run[1:], *halves], delta, **options).epsilon == whole


@few
@given(segment=segments, delta=deltas)
def test_rdp_is_never_below_pld(segment, delta):
    certified = epsilon([segment], delta, discretization=2e-4).epsilon
    assert epsilon([segment], delta, accountant="rdp").epsilon >= certified - 1e-3


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("adjacency", ["add_remove", "zero_out", "replace_one"])
def test_edges_of_the_domain(accountant, adjacency):
    def of(*segment):
        return epsilon([Segment(*segment)], 1e-5, accountant=accountant, adjacency=adjacency)

    assert epsilon([], 1e-5, accountant=accountant, adjacency=adjacency).epsilon == 0
    assert of(0.1, 1.0, 0).epsilon == 0
    assert of(0.0, 0.0, 100).epsilon == 0
    assert of(0.1, math.inf, 100).epsilon == 0
    assert of(0.1, 0.0, 1).epsilon == math.inf
    assert of(0.1, 1e-300, 1).epsilon == math.inf
    assert 0 <= of(1e-200, 1.0, 100).epsilon < 1e-100
    assert of(0.1, 0.0, 1).guarantee == (accountant in ("pld", "rdp"))


@pytest.mark.parametrize("sigma", [0.012, 0.05, 0.2, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("q", [1e-9, 0.3, 1 - 1e-12, 1.0])
@pytest.mark.parametrize(
    "options", [ALL["rdp"], ALL["gdp"], *({"accountant": "edgeworth", "order": k} for k in range(4))]
)
def test_never_nan_or_negative(options, q, sigma):
    for steps in (1, 10_000):
        for delta in (1e-30, 1e-5, 0.5):
            assert epsilon([Segment(q, sigma, steps)], delta, **options).epsilon >= 0


def test_zero_out_is_add_remove():
    run = [Segment(0.01, 1.0, 100)]
    assert epsilon(run, 1e-5, adjacency="zero_out").epsilon == epsilon(run, 1e-5).epsilon


def test_replace_one_on_full_batches_is_exact():
    answer = epsilon([Segment(1.0, 10.0, 100)], 1e-5, adjacency="replace_one")
    assert answer.epsilon == pytest.approx(9.997256, abs=1e-5)
    assert answer.guarantee
    # Renyi DP of the same pair is far above 4.7285, the cost under add_remove.
    renyi = epsilon([Segment(1.0, 10.0, 100)], 1e-5, adjacency="replace_one", accountant="rdp")
    assert 9.997256 < renyi.epsilon < 11


def test_deltas_below_the_round_off_of_the_fft_are_not_certified():
    run = [Segment(0.01, 1.0, 1000)]
    assert epsilon(run, 1e-10, discretization=1e-3).guarantee
    below = epsilon(run, 1e-12, discretization=1e-3)
    assert not below.guarantee
    assert "FFT" in below.notes[-1]


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
def test_the_round_off_of_many_steps_is_paid_for(adjacency):
    """At 1e-10 a certificate of 50,000 steps lies above the exact value by more than its grid explains."""
    run = [Segment(1e-3, 2.0, 50_000)]
    options = {"adjacency": adjacency}
    certified = epsilon(run, 1e-10, **options)
    assert certified.guarantee
    assert certified.epsilon > epsilon(run, 1e-10, accountant="contour", **options).epsilon + 0.003
    assert not epsilon([Segment(1e-3, 2.0, 10**6)], 1e-10, discretization=1e-3, **options).guarantee


def test_dropped_renyi_orders_are_mentioned_once_and_not_printed(capfd):
    answer = epsilon([Segment(0.03, 0.4, 100)], 1e-5, accountant="rdp")
    assert math.isfinite(answer.epsilon)
    assert answer.notes == ("4 orders left out: their series did not converge",)
    assert capfd.readouterr() == ("", "")


def test_output_is_strict_json():
    answer = epsilon([Segment(0.1, 0.0, 1), Segment(0.1, math.inf, 1)], 1e-5).to_dict()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["epsilon"] == "inf"
    assert answer["segments"][1] == {"sampling_rate": 0.1, "noise_multiplier": "inf", "steps": 1}
    assert set(answer) == {
        *("accountant", "version", "guarantee", "adjacency", "direction", "delta", "epsilon"),
        *("order", "segments", "discretization", "notes"),
    }


def test_numpy_integers_are_steps():
    assert epsilon([Segment(0.1, 1.0, np.int64(3))], 1e-5, accountant="gdp").epsilon > 0


def test_accounting_imports_neither_torch_nor_hydra():
    code = "import sys, privlm.privacy.accounting; print({'torch', 'hydra', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("run", [[(0.01, 10.0, 1), (0.1, 0.8, 100)], [(0.02, 30.0, 2), (0.05, 1.0, 1), (0.2, 2.0, 40)]])
def test_short_and_long_segments_compose_as_dp_accounting_composes_them(run):
    steps = [
        privacy_loss_distribution.from_gaussian_mechanism(
            sigma, sampling_prob=q, value_discretization_interval=1e-3, use_connect_dots=True
        ).self_compose(count)
        for q, sigma, count in run
    ]
    whole = functools.reduce(lambda one, other: one.compose(other), steps)
    ours = epsilon([Segment(*part) for part in run], 1e-5, discretization=1e-3).epsilon
    assert ours == pytest.approx(whole.get_epsilon_for_delta(1e-5), abs=1e-4)
