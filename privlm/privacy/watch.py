"""The mechanism watches itself: checks of what really happened, on in every private run.

They look at the batches that were drawn, the noise that was added and the sum that it hides, and raise MechanismError
naming what is broken. They read private data and publish nothing but that the run has stopped.

False alarms: a right mechanism fails a check with probability at most ALPHA in a whole run, however long, since step t
spends ALPHA / (t (t + 1)) and these sum to ALPHA. Tails are exact or bounded from above, never approximated.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from privlm.errors import PrivLMError

ALPHA = 1e-7
ROUNDING = 1e-4  # relative, of norms in float32


class MechanismError(PrivLMError):
    """Sampling, clipping or noise is not what the accounting assumes: no epsilon holds for this run."""


class SamplingCheck:
    """Compares the batches of a run so far with Poisson sampling: independent coins of one probability."""

    def __init__(self, num_examples: int, sampling_rate: float) -> None:
        self._rate = sampling_rate
        self._step = 0
        self._total = 0
        self._closeness = 0.0
        self._counts_N = np.zeros(num_examples)
        self._returns = _Deviation()

    def see(self, indices: npt.NDArray[np.int64]) -> None:
        """Takes in the global batch of one step; raises MechanismError."""
        self._step += 1
        level = _level(self._step)
        self._see_size(len(indices), level)
        self._see_history(indices, level)

    def _see_size(self, size: int, level: float) -> None:
        num_examples = len(self._counts_N)
        self._total += size
        total = _Deviation()
        total.add(self._total, self._step * num_examples, self._rate)
        if total.is_significant(level):
            raise MechanismError(
                f"sampling: {self._total} records in {self._step} batches, where the sampling rate makes "
                f"{self._step * num_examples * self._rate:.0f} expected; the batches are not drawn at that rate"
            )
        # Fisher's method: the chance to come as close to the expected size as this batch, over all batches.
        self._closeness -= 2 * math.log(_probability_within(size, num_examples, self._rate))
        if special.chdtrc(2 * self._step, self._closeness) < level:
            raise MechanismError(
                "sampling: the batches have a fixed size, or nearly so, where Poisson sampling makes it random; "
                "the privacy accounted for does not hold for shuffled or fixed-size batches"
            )

    def _see_history(self, indices: npt.NDArray[np.int64], level: float) -> None:
        """Records that were drawn often before must be no rarer and no more frequent in a batch than others."""
        seen_before = self._counts_N[indices].sum()
        self._returns.add(seen_before, self._counts_N.sum(), self._rate, self._counts_N)
        if self._returns.is_significant(level):
            direction = (
                "come back too seldom, as in shuffled batches" if self._returns.value < 0 else "come back too often"
            )
            raise MechanismError(f"sampling: records {direction}; Poisson sampling draws every batch afresh")
        self._counts_N[indices] += 1


class _Deviation:
    """A sum of independent coins, each with a weight, minus its expectation."""

    def __init__(self) -> None:
        self.value = 0.0
        self._variance = 0.0
        self._largest_weight = 1.0

    def add(
        self, observed: float, total_weight: float, rate: float, weights: npt.NDArray[np.float64] | None = None
    ) -> None:
        """weights: of the coins, all one where None; they may depend on earlier coins."""
        self.value += observed - rate * total_weight
        squares = total_weight if weights is None else float(weights @ weights)
        self._variance += rate * (1 - rate) * squares
        if weights is not None:
            self._largest_weight = max(self._largest_weight, float(weights.max()))

    def is_significant(self, level: float) -> bool:
        """Bernstein's inequality for either sign, for martingales that of Freedman (1975)."""
        size = abs(self.value)
        return size**2 > 2 * math.log(2 / level) * (self._variance + self._largest_weight * size / 3)


class ReleaseEvidence(NamedTuple):
    """What one rank shows of a release. Only floats: ranks add the rows of a table to share them."""

    num_writers: float  # 1 of each rank: a sum of another size tells of ranks that share a number
    first_noise: float  # the first two numbers drawn, float32
    second_noise: float
    squared_noise: float  # of the noise added, in units of its variance on this rank
    correlation: float  # of the noise drawn with that of the release before, N(0, 1) if they are independent
    clipped_sum: float  # its norm before the noise
    num_units: float  # in that sum


class ReleaseCheck:
    """Compares what the ranks have done for a release with what the ledger says of it, and with the release before."""

    def __init__(self, clipping_norm: float) -> None:
        self._clipping_norm = clipping_norm
        self._num_releases = 0
        self._last_step: int | None = None
        self._last_noise: npt.NDArray[np.float32] | None = None

    def refuse_earlier_step(self, step: int) -> None:
        """Raises ValueError for a step that was released already, or comes before one that was."""
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(
                f"step {step} comes after the release of step {self._last_step}: noise is added once per step"
            )

    def correlation(self, noise: npt.NDArray[np.float32]) -> float:
        """Of the numbers drawn now with those drawn for the release before; takes the new ones in."""
        last, self._last_noise = self._last_noise, noise
        return 0.0 if last is None else float(noise @ last / np.linalg.norm(last))

    def see(self, step: int, ranks: Sequence[ReleaseEvidence], num_noise_values: int) -> None:
        """Judges one release before it is used; raises MechanismError.

        num_noise_values: behind each rank's squared_noise; 0 where no noise was asked for.
        """
        self._num_releases += 1
        level = _level(self._num_releases) / len(ranks)
        if any(rank.num_writers != 1 for rank in ranks):
            raise MechanismError("noise: several processes call themselves by one rank number and share their noise")
        if num_noise_values:
            self._refuse_wrong_scale(ranks, num_noise_values, level)
        if len({(rank.first_noise, rank.second_noise) for rank in ranks}) < len(ranks):
            raise MechanismError("noise: ranks share one noise generator; give each rank a generator of its own")
        for number, rank in enumerate(ranks):
            if special.erfc(abs(rank.correlation) / math.sqrt(2)) < level:
                raise MechanismError(
                    f"noise: rank {number} repeats the noise of the release before, as with one seed for all steps; "
                    "the difference of two releases would reveal their sums"
                )
            bound = rank.num_units * self._clipping_norm * (1 + ROUNDING)
            if not rank.clipped_sum <= bound:  # true of NaN, too
                raise MechanismError(
                    f"clipping: the sum of {rank.num_units:.0f} clipped contributions on rank {number} has norm "
                    f"{rank.clipped_sum:.4g}, above {bound:.4g}; the noise is not scaled to it"
                )
        self._last_step = step

    def _refuse_wrong_scale(self, ranks: Sequence[ReleaseEvidence], num_values: int, level: float) -> None:
        for number, rank in enumerate(ranks):
            too_little = special.chdtr(num_values, rank.squared_noise) < level / 2
            too_much = special.chdtrc(num_values, rank.squared_noise) < level / 2
            if too_little or too_much:
                scale = math.sqrt(rank.squared_noise / num_values)
                raise MechanismError(
                    f"noise: process {number} of {len(ranks)} adds {scale:.3g} times its share of the noise; every "
                    "process must add noise of standard deviation noise_multiplier * clipping_norm / sqrt(processes)"
                )


def _level(step: int) -> float:
    return ALPHA / (step * (step + 1))


def _probability_within(size: int, num_examples: int, rate: float) -> float:
    """P(|S - E S| <= |size - E S|) for the binomial size S of a Poisson batch."""
    expected = num_examples * rate
    distance = abs(size - expected) + 1e-9  # so that rounding cannot exclude `size` itself
    highest = min(num_examples, math.floor(expected + distance))
    below = math.ceil(expected - distance) - 1
    at_most = special.bdtr(highest, num_examples, rate)
    return float(at_most - special.bdtr(below, num_examples, rate)) if below >= 0 else float(at_most)
