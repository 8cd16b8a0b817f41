"""A measured value with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal
MIN_N = 3
"""With fewer independent units, or seeds, no interval is given."""


@dataclass(frozen=True)
class Estimate:
    """A value measured on n independent units, and its 95 % interval: None where n is too small to give one."""

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The estimate of a monotone function of the value: its ends are those of the interval, in order."""
        if self.ci_low is None or self.ci_high is None:
            return Estimate(function(self.value), None, None, self.n)
        low, high = sorted((function(self.ci_low), function(self.ci_high)))
        return Estimate(function(self.value), low, high, self.n)
