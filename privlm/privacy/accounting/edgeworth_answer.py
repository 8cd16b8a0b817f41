"""What the Edgeworth accountant says, with what is known of it: its rigorous interval and the certified epsilon."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from privlm.privacy.accounting import edgeworth_interval
from privlm.privacy.accounting.accountant import NO_NOISE, epsilon
from privlm.privacy.accounting.adjacency import pair_of
from privlm.privacy.accounting.types import Guarantee, Segment, json_number, merge


@dataclass(frozen=True)
class EdgeworthAnswer:
    """The true epsilon lies in [eeai_lower, eeai_upper], where the upper end is often inf, and below certified_pld.

    certified_pld is None where pld certifies nothing (a tiny delta, one direction).
    """

    estimate: Guarantee
    eeai_lower: float
    eeai_upper: float
    certified_pld: float | None

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: the fields of the estimate and the three bounds."""
        return self.estimate.to_dict() | {
            "eeai_lower": self.eeai_lower,
            "eeai_upper": json_number(self.eeai_upper),
            "certified_pld": None if self.certified_pld is None else json_number(self.certified_pld),
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
    certificate = epsilon(segments, delta, **setting)
    return EdgeworthAnswer(estimate, lower, upper, certificate.epsilon if certificate.guarantee else None)


def _interval(segments: tuple[Segment, ...], delta: float, direction: str, adjacency: str) -> tuple[float, float]:
    if not segments:
        return 0.0, 0.0
    if min(segment.noise_multiplier for segment in segments) < NO_NOISE:
        return 0.0, math.inf
    return edgeworth_interval.interval(segments, pair_of(adjacency, direction), delta)
