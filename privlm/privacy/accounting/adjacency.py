"""Replacing one record, bounded from what adding or removing one record costs.

zero_out (a record becomes the null record) has the loss of add_remove and needs nothing here.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from privlm.privacy.accounting.types import Curve, Segment


def on_full_data(segments: Sequence[Segment]) -> bool:
    """Whether every step uses every record."""
    return all(segment.sampling_rate == 1 for segment in segments)


def doubled_sensitivity(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Steps on the full data: a replaced record moves the sum by two clipping norms: exactly half the noise."""
    assert on_full_data(segments)
    return tuple(replace(segment, noise_multiplier=segment.noise_multiplier / 2) for segment in segments)


def group_privacy(curve: Curve, delta: float) -> tuple[float, float]:
    """(epsilon under replace_one at `delta`, the add_remove delta it was taken from).

    A replacement is one removal and one addition: (e, d) for each gives (2 e, (1 + exp(e)) d) for both. The largest d
    with (1 + exp(e)) d <= delta is found to 1e-7, on the side that keeps the inequality. inf where no d of at least
    1e-14 does.
    """

    def excess(log_delta: float) -> float:
        return log_delta + np.logaddexp(0.0, curve(math.exp(log_delta))) - math.log(delta)

    high = math.log(delta / 2)
    if excess(high) <= 0:
        return 2 * curve(delta / 2), delta / 2
    low = min(math.log(1e-14), high - 1)  # below this a numerical curve has no digits left
    if excess(low) > 0:
        return math.inf, math.exp(low)
    precision = 1e-7
    root = brentq(excess, low, high, xtol=precision)
    while excess(root) > 0:
        root -= precision
    return 2 * curve(math.exp(root)), math.exp(root)
