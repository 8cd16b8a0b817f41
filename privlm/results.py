"""result.json: what a run has measured, as runners report it and as readers of run directories see it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import OmegaConf

from privlm import identity, rundir
from privlm.records import Records

TOO_FEW = "n too small"


class Measured(Protocol):
    """A value with its sample size and its interval, such as an Estimate of privlm.metrics."""

    @property
    def value(self) -> float: ...

    @property
    def ci_low(self) -> float | None: ...

    @property
    def ci_high(self) -> float | None: ...

    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Result:
    """One row of result.json: a number with its unit, its sample size and its interval.

    no_interval: why an estimate has none; None for a plain number, and in results of before the field.
    """

    metric: str
    value: float
    unit: str = "fraction"
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    split: str | None = None
    provenance: str = "measured"
    no_interval: str | None = None

    @classmethod
    def of(cls, metric: str, number: float | Measured, *, unit: str, split: str | None, n: int | None = None) -> Result:
        """The row of a plain number measured on `n` examples, or of an estimate with its own n and interval."""
        if isinstance(number, int | float):
            return cls(metric, number, unit, n, split=split)
        reason = TOO_FEW if number.ci_low is None else None
        return cls(metric, number.value, unit, number.n, number.ci_low, number.ci_high, split, no_interval=reason)

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
            no_interval=row.get("no_interval"),
        )

    def interval(self, form: str) -> str:
        """`[low, high]` in a format such as .4f, why there is none, or nothing for a plain number."""
        return interval_text(self.ci_low, self.ci_high, form) or self.no_interval or ""


def interval_text(low: float | None, high: float | None, form: str) -> str:
    """`[low, high]`, or nothing where there is no interval; with more digits where `form` would make the ends equal."""
    if low is None or high is None:
        return ""
    form = form if f"{low:{form}}" != f"{high:{form}}" else ".8g"
    return f"[{low:{form}}, {high:{form}}]"


def content(
    config: Any,
    records: Records,
    *,
    status: str,
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str],
    marks: Sequence[str],
    heads: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of result.json. Every row says what it is: measured, replayed, smoke or audited.

    heads: the ends of the privacy ledgers that the rows are of (privlm.privacy.run_account); empty without privacy.
    """
    kind = _provenance(config)
    return {
        "schema": rundir.SCHEMA,
        "task": config.task.name,
        "scale": config.scale,
        "status": status,
        "seed": config.seed,
        "run_hash": records.status["run_hash"],
        "cell_hash": records.status["cell_hash"],
        "hash_rules": identity.RULES,
        "content": records.status.get("content", {}),
        **records.used(),
        "finished": time.time(),
        "rows": [row | {"provenance": kind} for row in rows],
        "notes": list(notes),
        "marks": list(marks),
        **heads,
    }


def _provenance(config: Any) -> str:
    """What every figure of a run is."""
    if OmegaConf.select(config, "privacy.audit.canaries", default="none") != "none":
        return "audited"  # canaries stand in place of training records
    if config.scale == "smoke":
        return "smoke"
    return "replayed" if OmegaConf.select(config, "llm.backend") == "replay" else "measured"
