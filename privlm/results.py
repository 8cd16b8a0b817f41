"""Rows of result.json: what a run has measured, as runners report it and as readers of run directories see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Measured(Protocol):
    """A value with its sample size and its interval, such as an Estimate of privlm.metrics."""

    @property
    def value(self) -> float: ...

    @property
    def ci_low(self) -> float: ...

    @property
    def ci_high(self) -> float: ...

    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Result:
    """One row of result.json: a number with its unit, its sample size and its interval."""

    metric: str
    value: float
    unit: str = "fraction"
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    split: str | None = None
    provenance: str = "measured"

    @classmethod
    def of(cls, metric: str, number: float | Measured, *, unit: str, split: str | None, n: int | None = None) -> Result:
        """The row of a plain number measured on `n` examples, or of an estimate with its own n and interval."""
        if isinstance(number, int | float):
            return cls(metric, number, unit, n, split=split)
        return cls(metric, number.value, unit, number.n, number.ci_low, number.ci_high, split)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Result:
        """The row as JSON holds it, where NaN and infinities are text."""
        low, high = row.get("ci_low"), row.get("ci_high")
        return cls(
            metric=row["metric"],
            value=float(row["value"]),
            unit=row.get("unit") or "",
            n=row.get("n"),
            ci_low=None if low is None else float(low),
            ci_high=None if high is None else float(high),
            split=row.get("split"),
            provenance=row["provenance"],
        )
