"""`noise_multiplier`: the least noise that keeps a run within a target epsilon."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq

from privlm.errors import UsageError
from privlm.privacy.accounting import pld
from privlm.privacy.accounting.accountant import epsilon
from privlm.privacy.accounting.types import ESTIMATES, Guarantee, Segment

MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER = 1e-2, 1e4
TOLERANCE = 1e-3
"""How much of the target epsilon may be left unspent."""


@dataclass(frozen=True)
class Calibration:
    """A noise multiplier and what its accountant says of it: `achieved.epsilon` never exceeds `target_epsilon`."""

    noise_multiplier: float
    target_epsilon: float
    achieved: Guarantee

    @property
    def epsilon(self) -> float:
        return self.achieved.epsilon

    @property
    def guarantee(self) -> bool:
        return self.achieved.guarantee

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: the fields of the achieved guarantee, the noise multiplier and the target."""
        found = {"noise_multiplier": self.noise_multiplier, "target_epsilon": self.target_epsilon}
        return found | self.achieved.to_dict()


def noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "pld",
    order: int = 2,
    adjacency: str = "add_remove",
    spent: Sequence[Segment] = (),
) -> Calibration:
    """Noise multiplier whose epsilon is never above `target_epsilon` and at most 1e-3 below it.

    (Further below only where an estimate jumps.) With pld the contour accountant searches and the result is
    certified by pld. Nothing to hide (no steps, or a sampling rate of 0) needs no noise. Raises UsageError
    where no noise multiplier between 0.01 and 10000 meets the target.

    spent: earlier releases of the same records, which are a part of the epsilon.
    """
    if not 0 < target_epsilon < math.inf:
        raise UsageError(f"privacy.epsilon must be positive and finite, got {target_epsilon}")

    def certify(sigma: float, accountant: str = accountant, discretization: float | None = None) -> Guarantee:
        return epsilon(
            [*spent, Segment(sampling_rate, sigma, steps)],
            delta,
            accountant=accountant,
            order=order,
            adjacency=adjacency,
            discretization=discretization,
        )

    noiseless = certify(0.0)
    if sampling_rate == 0 or steps == 0:
        return Calibration(0.0, target_epsilon, noiseless)
    if spent:
        _refuse_spent_budget(target_epsilon, certify(math.inf), certify(MAX_NOISE_MULTIPLIER))
    elif 1 - (1 - sampling_rate) ** steps <= delta:
        raise UsageError(
            f"privacy.delta = {delta:g} covers the chance that a record is ever drawn: "
            "any noise_multiplier meets any epsilon; lower delta"
        )
    if accountant in ESTIMATES:
        found = _solve(lambda sigma: certify(sigma).epsilon, target_epsilon, guess=1.0, tolerance=TOLERANCE / 1000)
        return Calibration(found, target_epsilon, certify(found))
    guess = _edgeworth_guess(target_epsilon, delta, sampling_rate, steps, adjacency, spent)
    if accountant == "pld":
        return _certified_by_pld(target_epsilon, certify, guess)
    found = _solve(lambda sigma: certify(sigma).epsilon, target_epsilon, guess)
    return Calibration(found, target_epsilon, certify(found))


def _certified_by_pld(target: float, certify: Callable[..., Guarantee], sigma: float) -> Calibration:
    """Searches where a query is cheap, for a target raised by what that misses of the certificate."""

    @functools.cache
    def search(sigma: float) -> float:
        try:
            return certify(sigma, accountant="contour").epsilon
        except UsageError:  # a few steps; the coarse grid is fast there
            return certify(sigma, discretization=pld.COARSE).epsilon

    raised = target
    for _ in range(4):
        sigma = _solve(search, raised, sigma)
        achieved = certify(sigma)
        if target - TOLERANCE <= achieved.epsilon <= target:
            return Calibration(sigma, target, achieved)
        raised += target - TOLERANCE / 2 - achieved.epsilon
    sigma = _solve(lambda sigma: certify(sigma).epsilon, target, sigma)
    return Calibration(sigma, target, certify(sigma))


def _refuse_spent_budget(target: float, spent: Guarantee, least: Guarantee) -> None:
    """least: the epsilon of what is spent and of the steps to come under the most noise there is."""
    if least.epsilon > target - min(TOLERANCE, target / 100):
        raise UsageError(
            f"privacy.epsilon={target:g}: earlier releases have spent {spent.epsilon:.4f} of it at delta "
            f"{spent.delta:g}, which leaves too little for more steps; raise privacy.epsilon, or spend less before"
        )


def _edgeworth_guess(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int, adjacency: str, spent: Sequence[Segment]
) -> float:
    """Replacing a record takes at least the noise of removing it, and its own estimate is the worse of the two."""

    def ask(adjacency: str) -> float:
        return noise_multiplier(
            target_epsilon=target_epsilon,
            delta=delta,
            sampling_rate=sampling_rate,
            steps=steps,
            accountant="edgeworth",
            adjacency=adjacency,
            spent=spent,
        ).noise_multiplier

    try:
        return max(map(ask, {"add_remove", adjacency}))
    except UsageError:
        return MAX_NOISE_MULTIPLIER  # only a place to start from, and all accountants are at their best there


def _solve(epsilon_of: Callable[[float], float], target: float, guess: float, tolerance: float = TOLERANCE) -> float:
    """A noise multiplier whose epsilon lies in [target - tolerance, target], or just above a jump over that window."""
    tolerance = min(tolerance, target / 100)
    aim = target - tolerance / 2

    def excess(log_sigma: float) -> float:
        value = epsilon_of(math.exp(log_sigma))
        if target - tolerance <= value <= target:
            return 0.0  # ends the root search
        return 1 - 2 * aim / (value + aim)  # bounded: an infinite epsilon gives 1, zero gives -1

    low = high = math.log(guess)
    step = 0.02
    while excess(high) > 0:
        if high >= math.log(MAX_NOISE_MULTIPLIER):
            raise UsageError(f"privacy.epsilon: no noise_multiplier up to {MAX_NOISE_MULTIPLIER:g} reaches {target:g}")
        low, high, step = high, min(high + step, math.log(MAX_NOISE_MULTIPLIER)), 2 * step
    step = 0.02
    while excess(low) < 0:
        if low <= math.log(MIN_NOISE_MULTIPLIER):
            raise UsageError(
                f"privacy.epsilon: {target:g} holds with a noise_multiplier below {MIN_NOISE_MULTIPLIER:g}; lower it"
            )
        low, high, step = max(low - step, math.log(MIN_NOISE_MULTIPLIER)), low, 2 * step
    precision = 1e-8
    sigma = math.exp(brentq(excess, low, high, xtol=precision))
    while epsilon_of(sigma) > target:
        sigma *= 1 + precision
    return sigma
