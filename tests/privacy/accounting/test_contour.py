"""The contour accountant: exact where it answers, with its quadrature error; elsewhere a refusal."""

import pytest

from privlm.errors import UsageError
from privlm.privacy.accounting import Segment, contour, epsilon, moments

pytestmark = pytest.mark.torch_free

# (q, sigma, T, delta): exact remove, exact add
EXACT = {
    (2000 / 67349, 1.0, 1684, 1e-5): (8.041451, 6.506979),
    (2000 / 392702, 0.7, 9818, 1e-5): (6.598810, 5.008884),
    (1000 / 104743, 0.55, 315, 0.5 / 104743): (6.802060, 1.550439),
    (0.01, 1.0, 1000, 1e-5): (1.828237, 1.416662),
    (0.01, 2.0, 20000, 1e-5): (3.186900, 3.125951),
    (1.0, 10.0, 100, 1e-5): (4.377178, 4.377178),
}


@pytest.mark.parametrize(("setting", "exact"), EXACT.items())
def test_golden_epsilons(setting, exact):
    q, sigma, steps, delta = setting
    run = [Segment(q, sigma, steps)]
    for direction, golden in zip(("remove", "add"), exact, strict=True):
        value, error = contour.solve(run, direction, delta)
        assert value == pytest.approx(golden, abs=1e-6)
        assert 0 <= error < 1e-9


@pytest.mark.parametrize(
    ("run", "delta", "golden"),
    [
        ([Segment(0.01, 1.0, 500), Segment(0.02, 1.5, 500)], 1e-5, 1.89748),
        ([Segment(0.03, 0.25, 1684)], 1e-5, 407.78),
        ([Segment(0.01, 1.0, 1000)], 1e-12, 3.9143),  # where the round-off of the FFT is already too large
        ([Segment(0.001, 1.0, 10**6)], 1e-6, 6.6943),
        ([Segment(0.01, 1.0, 10)], 0.2, 0.0),
    ],
)
def test_schedules_and_extremes(run, delta, golden):
    answer = epsilon(run, delta, accountant="contour")
    assert answer.epsilon == pytest.approx(golden, rel=1e-5)
    assert not answer.guarantee
    assert "not a guarantee" in answer.notes[0]
    assert answer.notes[1].startswith("estimated quadrature error of epsilon: ")


@pytest.mark.parametrize(
    ("q", "sigma", "steps"), [(0.3, 2.0, 1), (0.1, 0.5, 30), (0.01, 1.0, 30), (0.01, 3.0, 100), (0.5, 30.0, 2000)]
)
def test_just_below_the_certified_bound(q, sigma, steps):
    run = [Segment(q, sigma, steps)]
    certified = epsilon(run, 1e-5).epsilon
    assert certified - 1e-4 < epsilon(run, 1e-5, accountant="contour").epsilon <= certified


def test_the_stated_error_covers_a_coarser_contour(monkeypatch):
    run = [Segment(0.01, 1.0, 30)]
    exact, _ = contour.solve(run, "remove", 1e-5)
    for module in (contour, moments):
        monkeypatch.setattr(module, "WINDOW", 25.0)
    value, error = contour.solve(run, "remove", 1e-5)
    assert 0 < abs(value - exact) <= error < 1e-5


def test_one_step_is_refused():
    with pytest.raises(UsageError, match=r"accountant contour.*take accountant pld"):
        epsilon([Segment(0.01, 1.0, 1)], 1e-5, accountant="contour")


@pytest.mark.parametrize("sigma", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("q", [1e-9, 0.3, 1 - 1e-12, 1.0])
def test_a_number_or_a_refusal(q, sigma):
    run = [Segment(q, sigma, 1000)]
    for delta in (1e-30, 1e-5, 0.5):
        try:
            value, error = contour.solve(run, "remove", delta)
        except UsageError:
            continue
        assert 0 <= value <= epsilon(run, delta, accountant="rdp").epsilon
        assert 0 <= error < 1e-5
