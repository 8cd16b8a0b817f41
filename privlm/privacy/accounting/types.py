"""What accountants take and give: segments of equal steps in, a guarantee (or an estimate, labelled as one) out."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any

from privlm.errors import UsageError

ACCOUNTANTS = ("pld", "rdp", "gdp", "edgeworth")
"""Those that may set the noise of a run."""
CROSS_CHECKS = ("prv", "contour")
"""Those that only answer questions."""
ESTIMATES = ("gdp", "edgeworth", "contour")
"""Those that certify nothing."""
ADJACENCIES = ("add_remove", "zero_out", "replace_one")
DIRECTIONS = ("both", "add", "remove")
ORDERS = (0, 1, 2, 3)

Curve = Callable[[float], float]
"""delta -> epsilon of one composed mechanism; non-increasing, never NaN, may be inf."""


@dataclass(frozen=True)
class Segment:
    """A run of equal steps: Poisson sampling at `sampling_rate`, Gaussian noise of `noise_multiplier` clipping norms.

    Raises UsageError for a value outside its range. Steps without noise are legal and cost an infinite epsilon.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_rate <= 1:
            raise UsageError(f"sampling_rate must lie in [0, 1], got {self.sampling_rate}")
        if not self.noise_multiplier >= 0:
            raise UsageError(f"noise_multiplier must be a number >= 0, got {self.noise_multiplier}")
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise UsageError(f"steps must be an integer >= 0, got {self.steps}")


@dataclass(frozen=True)
class Guarantee:
    """One answer of one accountant. `guarantee` is False for estimates and for a single direction of add_remove."""

    accountant: str
    version: str
    guarantee: bool
    adjacency: str
    direction: str
    delta: float
    epsilon: float
    order: int | None
    segments: tuple[Segment, ...]
    discretization: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Strict JSON: an infinite number becomes the string "inf"."""
        fields = asdict(self) | {"epsilon": json_number(self.epsilon), "notes": list(self.notes)}
        fields["segments"] = [
            asdict(segment) | {"noise_multiplier": json_number(segment.noise_multiplier)} for segment in self.segments
        ]
        return fields


def json_number(value: float) -> float | str:
    """`value`, or the string "inf", which strict JSON can hold."""
    return "inf" if math.isinf(value) else value


def merge(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """One segment per (sampling rate, noise multiplier), sorted; segments that release nothing are left out."""
    steps: dict[tuple[float, float], int] = {}
    for segment in segments:
        if segment.sampling_rate > 0 and segment.steps > 0 and math.isfinite(segment.noise_multiplier):
            key = (segment.sampling_rate, segment.noise_multiplier)
            steps[key] = steps.get(key, 0) + segment.steps
    return tuple(Segment(q, sigma, count) for (q, sigma), count in sorted(steps.items()))


def on_full_data(segments: Iterable[Segment]) -> bool:
    """Whether every step uses every record."""
    return all(segment.sampling_rate == 1 for segment in segments)


def num_steps(epochs: float | Fraction, dataset_size: int, batch_size: int) -> int:
    """Draws of the sampler in `epochs` expected passes over the data: ceil(epochs * N / B)."""
    exact = epochs if isinstance(epochs, Fraction) else Fraction(str(epochs))
    return math.ceil(exact * dataset_size / batch_size)


def resolve_delta(delta: float | str, dataset_size: int | None) -> float:
    """`delta` as a number; the text "1/2N" means 1 / (2 * dataset_size).

    Raises UsageError outside (0, 1), for any other text, and for "1/2N" without a dataset size.
    """
    if delta == "1/2N":
        if dataset_size is None:
            raise UsageError("privacy.delta=1/2N needs the dataset size; give it, or write delta as a number")
        return 1 / (2 * dataset_size)
    try:
        number = float(delta)
    except ValueError:
        raise UsageError(f"privacy.delta must be a number in (0, 1) or 1/2N, got {delta!r}") from None
    check_delta_range(number)
    return number


def check_delta_range(delta: float) -> None:
    """Raises UsageError unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise UsageError(f"privacy.delta must lie in (0, 1), got {delta}")


def check_delta(delta: float, dataset_size: int, allow_large_delta: bool) -> list[str]:
    """Warnings about a delta that is large for the data.

    A mechanism that publishes one random record has delta = 1/N, so at 1/N and above the guarantee is vacuous:
    raises UsageError there unless `allow_large_delta`. Above 1/(10 N) it only warns.
    """
    check_delta_range(delta)
    if dataset_size < 1:
        raise UsageError(f"the dataset size must be at least 1, got {dataset_size}")
    size = f"1/N = {1 / dataset_size:.3g} (N = {dataset_size})"
    if delta * dataset_size >= 1:
        if allow_large_delta:
            return [f"delta >= 1/N: privacy.delta = {delta:.3g} is not below {size}"]
        raise UsageError(
            f"privacy.delta = {delta:.3g} is not below {size}; lower it, or accept it with "
            "privacy.allow_large_delta=true (accountant: --allow-large-delta)"
        )
    if delta * dataset_size > 0.1:
        return [f"privacy.delta = {delta:.3g} is within a factor 10 of {size}"]
    return []
