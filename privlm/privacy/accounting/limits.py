"""What a budget allows at a given noise: `most_steps` and `largest_batch_size`, never overspent."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from privlm.errors import UsageError
from privlm.privacy.accounting import pld
from privlm.privacy.accounting.accountant import epsilon
from privlm.privacy.accounting.types import Guarantee, Segment, num_steps

MAX_STEPS = 10**7


@dataclass(frozen=True)
class Limit:
    """The largest `value` for which `achieved.epsilon` does not exceed `target_epsilon`."""

    name: str  # steps or batch_size
    value: int
    target_epsilon: float
    achieved: Guarantee

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: the fields of the achieved guarantee, the value by its name and the target."""
        return {self.name: self.value, "target_epsilon": self.target_epsilon} | self.achieved.to_dict()


def most_steps(
    *,
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    noise_multiplier: float,
    accountant: str = "pld",
    order: int = 2,
    adjacency: str = "add_remove",
) -> Limit:
    """The most steps within `target_epsilon`.

    With pld up to 1e-3 of epsilon may be left unspent. Raises UsageError where one step is too much already, or where
    MAX_STEPS steps are within the target.
    """
    setting = {"delta": delta, "accountant": accountant, "order": order, "adjacency": adjacency}
    segment = functools.partial(Segment, sampling_rate, noise_multiplier)
    limit = _largest("steps", segment, target_epsilon, MAX_STEPS, setting)
    if limit.value == MAX_STEPS:
        raise UsageError(f"privacy.epsilon: {target_epsilon:g} holds for {MAX_STEPS} steps and more; lower it")
    return limit


def largest_batch_size(
    *,
    target_epsilon: float,
    delta: float,
    dataset_size: int,
    noise_multiplier: float,
    steps: int | None = None,
    epochs: float | Fraction | None = None,
    accountant: str = "pld",
    order: int = 2,
    adjacency: str = "add_remove",
) -> Limit:
    """The largest expected batch size within `target_epsilon`, at most the data set, for `steps` or for `epochs`.

    With pld up to 1e-3 of epsilon may be left unspent. Raises ValueError unless exactly one of `steps` and `epochs` is
    given, UsageError where a batch size of 1 is too much already.
    """
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs")

    def segment(batch_size: int) -> Segment:
        if batch_size == 0:
            return Segment(0.0, noise_multiplier, 0)
        length = steps if epochs is None else num_steps(epochs, dataset_size, batch_size)
        assert length is not None
        return Segment(batch_size / dataset_size, noise_multiplier, length)

    setting = {"delta": delta, "accountant": accountant, "order": order, "adjacency": adjacency}
    return _largest("batch_size", segment, target_epsilon, dataset_size, setting)


def _largest(
    name: str, segment: Callable[[int], Segment], target: float, highest: int, setting: dict[str, Any]
) -> Limit:
    """The largest number up to `highest` whose segment keeps the target: searched cheaply, then certified."""
    if not 0 < target < math.inf:
        raise UsageError(f"privacy.epsilon must be positive and finite, got {target}")

    def spent(number: int, **changes: Any) -> float:
        return epsilon([segment(number)], **(setting | changes)).epsilon

    @functools.cache
    def search(number: int) -> float:
        if setting["accountant"] != "pld":
            return spent(number)
        try:
            return spent(number, accountant="contour")
        except UsageError:  # a few steps; the coarse grid is fast there
            return spent(number, discretization=pld.COARSE)

    guess = _bisect(functools.partial(_fits, functools.partial(spent, accountant="edgeworth"), target), 1, highest)
    aim = target
    while True:
        number = _bisect(functools.partial(_fits, search, aim), guess, highest)
        if number == 0:
            raise UsageError(f"privacy.epsilon: {name} 1 costs more than {target:g}; raise it, or noise_multiplier")
        achieved = epsilon([segment(number)], **setting)
        if achieved.epsilon <= target:
            return Limit(name, number, target, achieved)
        aim, guess = search(number) - (achieved.epsilon - target), number


def _fits(spent: Callable[[int], float], target: float, number: int) -> bool:
    return spent(number) <= target


def _bisect(fits: Callable[[int], bool], guess: int, highest: int) -> int:
    """The largest number in [0, highest] that fits, 0 if none does; numbers that fit lie below those that do not."""
    low = high = min(max(guess, 1), highest)
    step = max(1, guess // 50)
    while high < highest and fits(high):
        low, high, step = high, min(highest, high + step), 2 * step
    if fits(high):
        return high
    if low == high:
        while low > 0 and not fits(low):
            low, high, step = max(0, low - step), low, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
