"""The estimates of privlm.metrics over the answers of a suite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from privlm.metrics.differences import paired_difference
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share

from .suite import Grading, Reply

Value = Callable[[Reply], float]


def mean(grading: Grading, value: Value, *, weighted: bool = False, lowest: float = 0.0) -> Estimate:
    """The mean over units of the mean value of their answers, which are right or wrong together.

    weighted: by the weights of the units. lowest: the least value of an answer, where it lies below 0.
    """
    units = grading.units
    replies = [reply for members in units.values() for reply in members]
    names = [name for name, members in units.items() for _ in members]
    weights = [
        (reply.item.weight if weighted else 1.0) / len(members) for members in units.values() for reply in members
    ]
    return share([value(reply) for reply in replies], names, weights, lowest=lowest)


def difference(grading: Grading, a: Value, b: Value | np.ndarray, *, lowest: float = 0.0) -> Estimate:
    """The mean over units of a - b. b: values of answers, or of units in their order."""
    of_b = b if isinstance(b, np.ndarray) else grading.mean_by_unit(b)
    return paired_difference(grading.mean_by_unit(a), of_b, span=1 - lowest)
