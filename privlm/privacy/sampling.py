"""Poisson sampling: every record enters the batch of a step by its own coin of probability `sampling_rate`.

Guarantee: records are included independently of each other and of all other steps, which is what accounting
by subsampling assumes. The size of a batch is therefore random (binomial), an empty batch is a step like any
other, and no record is dropped to make sizes even.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from privlm.errors import UsageError
from privlm.privacy import keyed_random

Indices = npt.NDArray[np.int64]


class PoissonSampler:
    """Draws the global batch of each step.

    With a `seed` the coins of a step are a function of (seed, step) alone: every rank computes the same batch
    and a resumed run goes on without replay, but whoever knows the seed knows the batches, so that nothing is
    gained by sampling against him. With `seed=None` they come from the operating system; in a run of several
    ranks `broadcast` then has to return rank 0's array on every rank.
    """

    def __init__(
        self,
        num_examples: int,
        sampling_rate: float,
        seed: int | None,
        broadcast: Callable[[Indices], Indices] | None = None,
    ) -> None:
        if num_examples < 1:
            raise UsageError("the training set is empty: give data with at least one record")
        if not 0 < sampling_rate <= 1:
            raise UsageError(
                f"the sampling rate (trainer.batch_size / number of records) is {sampling_rate}, not in (0, 1]: "
                "choose a trainer.batch_size between 1 and the number of records"
            )
        self.num_examples = num_examples
        self.sampling_rate = sampling_rate
        self._seed = seed
        self._broadcast = broadcast

    @property
    def expected_batch_size(self) -> float:
        return self.sampling_rate * self.num_examples

    def indices(self, step: int) -> Indices:
        """Records of the global batch of `step`, ascending; possibly none."""
        if self._seed is not None:
            return self._drawn(keyed_random.generator("sampling", self._seed, step).random(self.num_examples))
        random_bits = np.frombuffer(os.urandom(8 * self.num_examples), dtype=np.uint64)
        drawn = self._drawn((random_bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)
        return self._broadcast(drawn) if self._broadcast else drawn

    def _drawn(self, uniform_N: npt.NDArray[np.float64]) -> Indices:
        return np.flatnonzero(uniform_N < self.sampling_rate)


def share(indices: Indices, rank: int, size: int) -> Indices:
    """The part of a global batch that `rank` of `size` ranks works on; the parts are disjoint and cover the batch."""
    return indices[rank::size]


def micro_batches(indices: Indices, lengths: Sequence[int] | Indices | None, micro_batch_size: int) -> list[Indices]:
    """Cuts a batch into pieces of at most `micro_batch_size` records; no pieces for an empty batch.

    `lengths` (tokens of every record of the data set, [N]) puts records of similar length together, which
    saves padding. Pieces matter for memory and speed only: records are clipped one by one.
    """
    if micro_batch_size < 1:
        raise UsageError(f"trainer.micro_batch_size is {micro_batch_size}: it must be at least 1")
    if lengths is not None:
        indices = indices[np.argsort(np.asarray(lengths)[indices], kind="stable")]
    return [indices[start : start + micro_batch_size] for start in range(0, len(indices), micro_batch_size)]
