"""The privacy card: all that a reader needs to judge the privacy of a run, from privacy.json.

What is guaranteed and what is estimated never share a line: an estimate carries its own word wherever it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GUARANTEE, ESTIMATE = "guarantee", "estimate"


@dataclass(frozen=True)
class Reading:
    """One accountant's view: the epsilon of the noise that was used, and the noise it would have asked for.

    kind: guarantee (holds for every data set) or estimate (may be below the truth).
    """

    accountant: str
    kind: str
    epsilon: float | None
    noise_multiplier: float | None


@dataclass(frozen=True)
class Card:
    """`headline` in one sentence, the accountants side by side, the facts as (name, value), and the flags."""

    headline: str
    readings: list[Reading]
    facts: list[tuple[str, str]]
    flags: list[str]


def privacy_card(privacy: dict[str, Any] | None) -> Card:
    """The card of a run; `privacy` is the content of privacy.json, None where the run has not written it yet."""
    if privacy is None:
        return Card("privacy.json has not been written", [], [], [])
    if privacy["mechanism"] == "none":
        return Card("no privacy: the training data is not protected", [], [("mechanism", "none")], [])
    kind = GUARANTEE if privacy["guarantee"] else ESTIMATE
    delta = float(privacy["delta"])
    headline = f"({number(privacy['epsilon'])}, {delta:g})-differential privacy per {privacy['unit']}, {kind}"
    return Card(headline, _readings(privacy, kind), _facts(privacy, delta), list(privacy["flags"]))


def number(value: Any, digits: int = 4) -> str:
    """A number of a JSON file (infinities are text there) with up to `digits` significant digits."""
    return "—" if value is None else f"{float(value):.{digits}g}"


def _readings(privacy: dict[str, Any], kind: str) -> list[Reading]:
    sigma = privacy["noise_multipliers"]
    used = privacy["accountant"]
    readings = [Reading(used, kind, float(privacy["epsilon"]), sigma.get(used))]
    for name, epsilon in privacy["bounds"].items():
        readings.append(Reading(name, GUARANTEE, float(epsilon), sigma.get(name)))
    for name, estimate in privacy["estimates"].items():
        order = estimate.get("order")
        title = name if order is None else f"{name}, order {order}"
        readings.append(Reading(title, ESTIMATE, float(estimate["epsilon"]), sigma.get(name)))
    return readings


def _facts(privacy: dict[str, Any], delta: float) -> list[tuple[str, str]]:
    size = privacy["dataset_size"]
    target = privacy["target_epsilon"]
    return [
        ("mechanism", privacy["mechanism"]),
        ("unit of privacy", privacy["unit"]),
        ("adjacency", privacy["adjacency"]),
        ("target ε", "none: the noise was given" if target is None else number(target)),
        ("δ", f"{delta:g} (1/N = {1 / size:.3g})"),
        ("training examples N", f"{size:,}"),
        ("sampling", privacy["sampling"]),
        ("sampling rate q", number(privacy["sampling_rate"])),
        ("expected batch size", number(privacy["expected_batch_size"])),
        ("steps T", f"{privacy['steps']:,}"),
        ("noise multiplier σ", number(privacy["noise_multiplier"])),
        ("clipping norm C", number(privacy["clipping_norm"])),
        ("clipping", privacy["clipping"]),
        ("randomness", privacy["rng"]),
        ("releases repeated after a resume", str(privacy["repeated_releases"])),
        ("audit", "not audited"),
    ]
