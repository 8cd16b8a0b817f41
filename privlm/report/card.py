"""The privacy card: all that a reader needs to judge the privacy of a run, from what privlm.report.told tells of it.

What is guaranteed and what is estimated never share a column, nor what was planned and what was done.
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
    noise_multiplier: float | list[float] | None

    @property
    def kind(self) -> str:
        return "estimate" if self.guaranteed is None else "guarantee"

    @property
    def texts(self) -> list[str]:
        """The fields as READING_COLUMNS name them."""
        guaranteed = "" if self.guaranteed is None else rounded_up(self.guaranteed)
        return [self.accountant, guaranteed, _three_decimals(self.estimated), _three_decimals(self.noise_multiplier)]


def _three_decimals(value: Any) -> str:
    """Of a number, or of the ends of a range."""
    if isinstance(value, list):
        return " to ".join(map(_three_decimals, value))
    return "" if value is None else f"{value:.3f}"


STEPS = "steps T"
ROUNDS = "rounds T"
PLANNED = "planned"
OF_A_STAGE = (STEPS, ROUNDS, PLANNED)
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

    privacy: as RunRecord.privacy tells it, None where the run has not written it yet. audit: that of audit.json.
    """
    if privacy is None:
        return Card("privacy.json has not been written", [], [], [])
    if not privacy.get("trains", True):
        return Card("nothing was trained", [], [("mechanism", "none")], [])
    if privacy["mechanism"] == "none":
        return Card("no privacy: the training data is not protected", [], [("mechanism", "none")], [])
    if not privacy.get("final", True):
        return Card(_so_far(privacy), [], _facts_so_far(privacy), list(privacy.get("flags", ())))
    epsilon, delta = float(privacy["epsilon"]), float(privacy["delta"])
    claim = f"({rounded_up(epsilon)}, {delta:g})-differential privacy per {privacy['unit']}{_of_clients(privacy)}"
    headline = f"guarantee: {claim}" if privacy["guarantee"] else f"no guarantee: {claim} is not certified"
    facts = [*_facts_by_stage(privacy), *_facts_of_the_account(privacy), ("audit", _audit(audit))]
    return Card(headline, _readings(privacy), facts, list(privacy["flags"]))


def _of_clients(privacy: dict[str, Any]) -> str:
    """How one epsilon is told for clients that each add noise of their own."""
    if "are_disjoint" not in privacy:
        return ""
    stages = privacy.get("stages", {None: {}}).values()
    number = max({**privacy, **own}.get("num_clients", 0) for own in stages)
    if privacy["are_disjoint"]:
        return f" (the largest of {number} clients, whose records are disjoint)"
    return f" (of {number} clients together: a record may be with several)"


def rounded_up(epsilon: float) -> str:
    """A guaranteed epsilon with three decimals; rounded down it would promise more than was proved."""
    return f"{math.ceil(round(epsilon * 1000, 6)) / 1000:.3f}" if math.isfinite(epsilon) else str(epsilon)


def figure(result: Result) -> str:
    """The value of a row of results, as it is printed."""
    return rounded_up(result.value) if result.metric == "epsilon" else number(result.value)


def number(value: Any) -> str:
    """A number of a JSON file (infinities are text there), or the ends of a range: four significant digits, of large
    integers all.
    """
    if value is None:
        return "—"
    if isinstance(value, list):  # what differs between clients
        return " to ".join(map(number, value))
    real = float(value)
    return f"{real:,.0f}" if real.is_integer() and abs(real) >= 1000 else f"{real:.4g}"


def spent_text(privacy: dict[str, Any]) -> str:
    """What a run that is not done has spent by now, in a few words."""
    spent = privacy.get("spent")
    if spent is None:
        return "unknown: there is no ledger" if "delta" in privacy else "nothing has been released yet"
    if spent["releases"] == 0:
        return "nothing has been released yet"
    if spent["epsilon"] is None:
        return f"unknown: {spent['releases']:,} releases, and no delta is told"
    kind = f"certified by {privacy['accountant']}" if spent["certified"] else "not certified"
    delta = f"δ {float(privacy['delta']):g}"
    told = f"ε {rounded_up(float(spent['epsilon']))} at {delta}, {kind}, by {spent['releases']:,} releases"
    return told + _of_clients(privacy)


def beside_the_plan(privacy: dict[str, Any] | None) -> str:
    """Of a private run that is not done: what it has spent, and what it was going to; else nothing."""
    if privacy is None or privacy.get("final", True):
        return ""
    planned = privacy.get("planned_epsilon")
    beside = f"; planned: ε {rounded_up(float(planned))}" if planned is not None else ""
    return f"privacy spent so far: {spent_text(privacy)}{beside}"


def _so_far(privacy: dict[str, Any]) -> str:
    return f"not done; spent so far: {spent_text(privacy)}"


def _facts_so_far(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("spent so far", spent_text(privacy))]
    if "delta" not in privacy:
        return [("mechanism", privacy["mechanism"]), *facts]
    return [*facts, *_facts_by_stage(privacy), *_facts_of_the_account(privacy)]


def _readings(privacy: dict[str, Any]) -> list[Reading]:
    sigma = privacy.get("noise_multipliers", {})  # of several private stages each has its own
    first = {privacy["accountant"]: privacy["epsilon"]}
    guarantees = {**(first if privacy["guarantee"] else {}), **privacy["bounds"]}
    estimates = {**({} if privacy["guarantee"] else first), **privacy["estimates"]}
    titles = {"edgeworth": f"edgeworth, order {privacy['order']}"}
    return [
        *(Reading(name, float(epsilon), None, sigma.get(name)) for name, epsilon in guarantees.items()),
        *(
            Reading(titles.get(name, name), None, float(epsilon), sigma.get(name))
            for name, epsilon in estimates.items()
        ),
    ]


def _facts_by_stage(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    """What the private stages share once, the rest for each of them."""
    if "stages" not in privacy:
        return _facts(privacy, _only(privacy.get("taken", {})))
    rows: list[tuple[str, str]] = []
    stages = privacy["stages"].items()
    facts = (_facts({**privacy, **own}, privacy.get("taken", {}).get(name)) for name, own in stages)
    for of_each in zip(*facts, strict=True):
        name, value = of_each[0]
        if name not in OF_A_STAGE and {value} == {other for _, other in of_each}:
            rows.append((name, value))
        else:
            rows += [(f"{name} of {stage}", own) for stage, (_, own) in zip(privacy["stages"], of_each, strict=True)]
    return rows


def _only(taken: dict[str, Any]) -> dict[str, Any] | None:
    """What the ledger says of the one stage of a run."""
    return next(iter(taken.values())) if len(taken) == 1 else None


def _facts(privacy: dict[str, Any], taken: dict[str, Any] | None) -> list[tuple[str, str]]:
    """taken: what the ledger says of the stage, None where there is no ledger, or nothing in it.

    What was planned for the stage is one fact, named so: before its first release there is no other.
    """
    delta, target = float(privacy["delta"]), privacy["target_epsilon"]
    is_planned = taken is None and not privacy.get("final", True)
    of = {name: _by_setting(privacy, taken, name, is_planned=is_planned) for name in _OF_A_RELEASE}
    units, batch, steps = _NAMES_OF_CLIENTS if privacy["unit"] == "client" else _NAMES
    return [
        ("mechanism", privacy["mechanism"]),
        ("unit of privacy", privacy["unit"]),
        ("adjacency", privacy["adjacency"]),
        ("target ε", "none: the noise was given" if target is None else number(target)),
        ("δ", f"{delta:g} (1/N = {_one_over(privacy['dataset_size'])})"),
        *_facts_of_clients(privacy),
        (units, _size(privacy["dataset_size"])),
        ("sampling", privacy["sampling"]),
        ("sampling rate q", of["sampling_rate"]),
        (batch, of["expected_batch_size"]),
        (steps, "0" if is_planned else _size(_steps(privacy, taken))),
        ("noise multiplier σ", of["noise_multiplier"]),
        (PLANNED, _planned(privacy)),
        ("σ was set by", privacy["noise_set_by"] if privacy["noise_multipliers"] else "the user"),
        ("clipping norm C", of["clipping_norm"]),
        ("clipping", privacy["clipping"]),
        ("randomness", privacy["rng"]),
        ("releases repeated after a resume", str(privacy["repeated_releases"])),
    ]


_NAMES = ("training examples N", "expected batch size", STEPS)
_NAMES_OF_CLIENTS = ("clients N", "expected clients a round", ROUNDS)


def _size(value: Any) -> str:
    """A number of things, or the least and the most of what clients have."""
    return " to ".join(map(_size, value)) if isinstance(value, list) else f"{value:,}"


def _one_over(size: Any) -> str:
    return " to ".join(map(_one_over, size[::-1])) if isinstance(size, list) else f"{1 / size:.3g}"


def _steps(privacy: dict[str, Any], taken: dict[str, Any] | None) -> Any:
    """By the ledgers: of the stage, or the least and the most that a client has taken."""
    if taken is None:
        return privacy["steps"]
    if "num_clients" not in privacy:
        return taken["steps"]
    of_each = [taken.get("clients", {}).get(client, {"steps": 0})["steps"] for client in privacy["clients"]]
    return of_each[0] if len(set(of_each)) == 1 else [min(of_each), max(of_each)]


def _facts_of_clients(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    """Of a stage whose clients each add noise of their own; while the run works, nothing of what each has spent."""
    if "num_clients" not in privacy:
        return []
    facts = [("clients", f"{privacy['num_clients']:,}, each with noise of its own")]
    told = {client: own["epsilon"] for client, own in privacy["clients"].items() if own["epsilon"] is not None}
    if told and privacy.get("final", True):
        dearest = sorted(told.items(), key=lambda item: -float(item[1]))
        named = [f"{client} {rounded_up(float(epsilon))}" for client, epsilon in dearest[:_MOST_NAMED]]
        more = f" and {len(told) - _MOST_NAMED} below" if len(told) > _MOST_NAMED else ""
        facts.append(("ε of each client", ", ".join(named) + more))
    return facts


_MOST_NAMED = 10
_OF_A_RELEASE = ("sampling_rate", "expected_batch_size", "noise_multiplier", "clipping_norm")


def _by_setting(privacy: dict[str, Any], taken: dict[str, Any] | None, name: str, *, is_planned: bool) -> str:
    """A value of the releases, with their number where they were not all alike; of clients the least and the most."""
    if taken is None:
        return f"{number(privacy[name])}{' (planned)' if is_planned else ''}"
    counts: dict[float, int] = {}
    for setting in taken["settings"]:
        counts[setting[name]] = counts.get(setting[name], 0) + setting["releases"]
    if len(counts) == 1:
        return number(next(iter(counts)))
    if "num_clients" in privacy:
        return number([min(counts), max(counts)])
    return ", ".join(f"{number(value)} in {count:,} releases" for value, count in counts.items())


def _planned(privacy: dict[str, Any]) -> str:
    """Steps (rounds, of clients) of the plan and their price; the plan of a stage prices those before it too."""
    if "planned_steps" not in privacy:
        return "—"
    what = "rounds" if privacy["unit"] == "client" else "steps"
    return f"{_size(privacy['planned_steps'])} {what}, ε {rounded_up(float(privacy['planned_epsilon']))}"


def _facts_of_the_account(privacy: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("ledger", privacy.get("account") or "none: the run is of an older version, or its ledger was removed")]
    if privacy.get("with_forced") is not None:
        facts.append(("with what --force removed", forced_text(privacy)))
    return facts


def forced_text(privacy: dict[str, Any]) -> str:
    """What a run and those that --force removed before it have spent together."""
    forced = privacy["with_forced"]
    if forced["epsilon"] is None:
        return f"unknown: {forced['problem']}"
    kind = "certified" if forced["certified"] else "not certified"
    price = f"ε {rounded_up(float(forced['epsilon']))} at δ {float(privacy['delta']):g}, {kind}"
    return f"{price}, by {forced['releases']:,} releases ({', '.join(forced['accounts'])})"


def _audit(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return "not audited"
    box = audit["threat_model"].partition(":")[0]
    return f"{audit['verdict']}: ε ≥ {audit['epsilon_lower_bound']:.3f} at {audit['confidence']:.0%} confidence, {box}"
