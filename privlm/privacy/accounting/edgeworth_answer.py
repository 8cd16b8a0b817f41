"""What the Edgeworth accountant says, with what is known of it: its rigorous interval and the certified epsilon."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privlm.privacy.accounting import edgeworth_interval
from privlm.privacy.accounting.accountant import NO_NOISE, epsilon
from privlm.privacy.accounting.adjacency import doubled_sensitivity, on_full_data
from privlm.privacy.accounting.types import Guarantee, Segment, json_number, merge


@dataclass(frozen=True)
class EdgeworthAnswer:
    """The true epsilon lies in [eeai_lower, eeai_upper], where the upper end is often inf, and below certified_pld."""

    estimate: Guarantee
    eeai_lower: float
    eeai_upper: float
    certified_pld: float

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: the fields of the estimate and the three bounds."""
        return self.estimate.to_dict() | {
            "eeai_lower": self.eeai_lower,
            "eeai_upper": json_number(self.eeai_upper),
            "certified_pld": json_number(self.certified_pld),
        }


def edgeworth_answer(
    segments: Iterable[Segment],
    delta: float,
    *,
    order: int = 2,
    direction: str = "both",
    adjacency: str = "add_remove",
) -> EdgeworthAnswer:
    """The estimate of `order` beside its bounds; arguments and errors are those of `epsilon`."""
    segments = tuple(segments)
    setting: dict[str, Any] = {"direction": direction, "adjacency": adjacency}
    estimate = epsilon(segments, delta, accountant="edgeworth", order=order, **setting)
    lower, upper = _interval(merge(segments), delta, direction, adjacency)
    return EdgeworthAnswer(estimate, lower, upper, epsilon(segments, delta, **setting).epsilon)


def _interval(segments: tuple[Segment, ...], delta: float, direction: str, adjacency: str) -> tuple[float, float]:
    if not segments:
        return 0.0, 0.0
    if min(segment.noise_multiplier for segment in segments) < NO_NOISE:
        return 0.0, math.inf
    if adjacency == "replace_one":
        if not on_full_data(segments):
            return 0.0, math.inf  # no bound is known for it
        segments = doubled_sensitivity(segments)
    return edgeworth_interval.interval(segments, direction, delta)
