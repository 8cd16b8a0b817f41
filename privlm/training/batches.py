"""Which examples a step sees, as a function of (seed, step): a resumed run needs no sampler state. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from privlm.privacy import keyed_random

if TYPE_CHECKING:
    from privlm.training.objective import Batch

Indices = npt.NDArray[np.int64]


class TrainingData(Protocol):
    """What the trainer needs of a data set: its size, its lengths, and padded batches of any of its examples.

    lengths: tokens of each example, [N], or None; only used to put examples of similar length together.
    """

    @property
    def lengths(self) -> npt.NDArray[np.int64] | None: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> Batch: ...


class Batches(Protocol):
    """Which examples a step sees: the same answer to the same question, so that a resumed run asks again."""

    def indices(self, step: int) -> Indices:
        """Examples of `step` (1-based)."""
        ...


def num_steps(config: Any, num_examples: int) -> int:
    """trainer.steps, or the steps that trainer.epochs takes: ceil(epochs * N / batch_size)."""
    if config.steps is not None:
        return config.steps
    return math.ceil(config.epochs * num_examples / config.batch_size)


class ShuffledBatches:
    """Logical batches of exactly `batch_size` examples, from one endless stream of shuffled epochs."""

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed

    def indices(self, step: int) -> Indices:
        """Examples of `step` (1-based), [batch_size]; a batch may reach over the end of an epoch."""
        positions = np.arange((step - 1) * self.batch_size, step * self.batch_size)
        epochs = positions // self.num_examples
        pieces = [
            self._permutation(int(epoch))[positions[epochs == epoch] % self.num_examples] for epoch in np.unique(epochs)
        ]
        return np.concatenate(pieces)

    def _permutation(self, epoch: int) -> Indices:
        return keyed_random.generator("shuffle", self.seed, epoch).permutation(self.num_examples)
