"""The privacy card: all that a reader needs to judge the privacy of a run, from privacy.json.

What is guaranteed and what is estimated never share a column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from privlm.results import Result


@dataclass(frozen=True)
class Reading:
    """One accountant's view: the epsilon of the noise that was used, and the noise it would have asked for.

    guaranteed holds for every data set, estimated may lie below the truth: one of the two is given.
    """

    accountant: str
    guaranteed: float | None
    estimated: float | None
    noise_multiplier: float | None

    @property
    def kind(self) -> str:
        return "estimate" if self.guaranteed is None else "guarantee"

    @property
    def texts(self) -> list[str]:
        """The fields as READING_COLUMNS name them."""
        numbers = (self.estimated, self.noise_multiplier)
        guaranteed = "" if self.guaranteed is None else rounded_up(self.guaranteed)
        return [self.accountant, guaranteed, *("" if value is None else f"{value:.3f}" for value in numbers)]


STEPS = "steps T"
READING_COLUMNS = ["accountant", "guaranteed ε", "estimated ε", "noise multiplier for the target"]


@dataclass(frozen=True)
class Card:
    """`headline` in one sentence, the accountants side by side, the facts as (name, value), and the flags."""

    headline: str
    readings: list[Reading]
    facts: list[tuple[str, str]]
    flags: list[str]


def privacy_card(privacy: dict[str, Any] | None, audit: dict[str, Any] | None = None) -> Card:
    """The card of a run.

    privacy: the content of privacy.json, None where the run has not written it yet. audit: that of audit.json.
    """
    if privacy is None:
        return Card("privacy.json has not been written", [], [], [])
    if not privacy.get("trains", True):
        return Card("nothing was trained", [], [("mechanism", "none")], [])
    if privacy["mechanism"] == "none":
        return Card("no privacy: the training data is not protected", [], [("mechanism", "none")], [])
    assert privacy["guarantee"], "epsilon in privacy.json is certified; estimates have their own place"
    epsilon, delta = float(privacy["epsilon"]), float(privacy["delta"])
    headline = f"guarantee: ({rounded_up(epsilon)}, {delta:g})-differential privacy per {privacy['unit']}"
    return Card(
        headline, _readings(privacy), [*_facts_by_stage(privacy), ("audit", _audit(audit))], list(privacy["flags"])
    )


def rounded_up(epsilon: float) -> str:
    """A guaranteed epsilon with three decimals; rounded down it would promise more than was proved."""
    return f"{math.ceil(round(epsilon * 1000, 6)) / 1000:.3f}" if math.isfinite(epsilon) else str(epsilon)


def figure(result: Result) -> str:
    """The value of a row of results, as it is printed."""
    return rounded_up(result.value) if result.metric == "epsilon" else number(result.value)


def number(value: Any) -> str:
    """A number of a JSON file (infinities are text there): four significant digits, of large integers all."""
    if value is None:
        return "—"
    real = float(value)
    return f"{real:,.0f}" if real.is_integer() and abs(real) >= 1000 else f"{real:.4g}"


def _readings(privacy: dict[str, Any]) -> list[Reading]:
    sigma = privacy.get("noise_multipliers", {})  # of several private stages each has its own
    guarantees = {privacy["accountant"]: privacy["epsilon"], **privacy["bounds"]}
    titles = {"edgeworth": f"edgeworth, order {privacy['order']}"}
    return [
        *(Reading(name, float(epsilon), None, sigma.get(name)) for name, epsilon in guarantees.items()),
        *(
            Reading(titles.get(name, name), None, float(epsilon), sigma.get(name))
            for name, epsilon in privacy["estimates"].items()
        ),
    ]


def _facts_by_stage(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    """What the private stages share once, the rest for each of them."""
    if "stages" not in privacy:
        return _facts(privacy)
    rows: list[tuple[str, str]] = []
    for of_each in zip(*(_facts({**privacy, **own}) for own in privacy["stages"].values()), strict=True):
        name, value = of_each[0]
        if name != STEPS and {value} == {other for _, other in of_each}:
            rows.append((name, value))
        else:
            rows += [(f"{name} of {stage}", own) for stage, (_, own) in zip(privacy["stages"], of_each, strict=True)]
    return rows


def _facts(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    size, delta = privacy["dataset_size"], float(privacy["delta"])
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
        (STEPS, f"{privacy['steps']:,}"),
        ("noise multiplier σ", number(privacy["noise_multiplier"])),
        ("σ was set by", privacy["noise_set_by"] if privacy["noise_multipliers"] else "the user"),
        ("clipping norm C", number(privacy["clipping_norm"])),
        ("clipping", privacy["clipping"]),
        ("randomness", privacy["rng"]),
        ("releases repeated after a resume", str(privacy["repeated_releases"])),
    ]


def _audit(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return "not audited"
    box = audit["threat_model"].partition(":")[0]
    return f"{audit['verdict']}: ε ≥ {audit['epsilon_lower_bound']:.3f} at {audit['confidence']:.0%} confidence, {box}"
