"""What a run with privacy has spent, as privacy.json and result.json hold it: the plans beside what its ledgers say.

The certified epsilon comes from the ledgers alone; an estimate stands beside it and never in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privlm.errors import UsageError
from privlm.privacy import composition
from privlm.privacy.accounting import Guarantee, Segment
from privlm.privacy.accounting.types import json_number
from privlm.privacy.accounts import Accounts
from privlm.privacy.client_plans import ClientPlans
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan
from privlm.results import Result

Plans = Mapping[str, PrivacyPlan | ClientPlans]
"""Of the private stages of a run, by their names."""


def account(
    plans: PrivacyPlan | Plans,
    ledger: Ledger | Accounts,
    *,
    steps: int | Mapping[str, int],
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of privacy.json at the end: the plan, with what the ledgers say was really spent.

    plans: of the one private stage of a run, or of each by its name. steps: taken so far, likewise; those of clients
    are read from their ledgers. Releases above that number are steps taken again with fresh noise after a kill; they
    cost, too.

    With several stages the figures are of all ledgers, delta is the smallest, and `stages` holds for each stage what is
    its own. With clients, epsilon is that of the one that pays most (`largest_client`) where they are disjoint, else of
    everything composed. Raises UsageError where stages differ in what one epsilon is told for.
    """
    if isinstance(plans, PrivacyPlan):
        assert isinstance(steps, int)
        plans, steps = {"": plans}, {"": steps}
    assert not isinstance(steps, int)
    asked = _Question(plans, ledger)
    certified = composition.of_each(asked.groups, asked.delta, accountant=asked.certifier, adjacency=asked.adjacency)
    whole = composition.largest(certified.values())
    return (
        _facts(plans, steps, asked, certified)
        | asked.about_clients(certified)
        | {
            "final": True,
            "delta": asked.delta,
            "accountant": asked.certifier,
            "repeated_releases": asked.repeated(steps),
            "epsilon": whole.epsilon,
            "guarantee": whole.guarantee,
            "certificate": whole.to_dict(),
            "bounds": {"rdp": asked.spent("rdp")},
            "estimates": {"edgeworth": asked.spent("edgeworth"), "gdp": asked.spent("gdp")},
            "flags": _flags(flags, plans),
        }
    )


def account_so_far(
    plans: Plans, ledger: Ledger | Accounts, *, flags: Sequence[str] = (), discretization: float | None = None
) -> dict[str, Any]:
    """The content of privacy.json while the run works: the plans, and under `spent` what the ledgers hold by now.

    Nothing here is a guarantee of the run, which may release more the next moment.
    discretization: of the grid of PLD, see accounting.epsilon.
    """
    asked = _Question(plans, ledger)
    steps = {
        name: len({release.step for release in ledger.releases if release.stage == name})
        for name, plan in plans.items()
        if isinstance(plan, PrivacyPlan)
    }
    how = {"accountant": asked.certifier, "adjacency": asked.adjacency}
    grid = {"discretization": discretization} if asked.certifier == "pld" else {}
    prices = composition.of_each(asked.groups, asked.delta, **how, **grid)
    price = composition.largest(prices.values())
    spent = {"releases": asked.num_releases, "epsilon": json_number(price.epsilon), "certified": price.guarantee}
    return (
        _facts(plans, steps, asked, prices)
        | asked.about_clients(prices)
        | {
            "final": False,
            "delta": asked.delta,
            "accountant": asked.certifier,
            "repeated_releases": asked.repeated(steps),
            "epsilon": None,
            "guarantee": False,
            "spent": spent,
            "certificate": None,
            "bounds": {},
            "estimates": {},
            "flags": _flags(flags, plans),
        }
    )


class _Question:
    """What an accountant is asked about a run.

    groups: the releases that a unit pays for, by client (composition.groups). certifier: whose epsilon is told.
    """

    def __init__(self, plans: Plans, ledger: Ledger | Accounts) -> None:
        """Raises UsageError where the plans differ in what one epsilon is told for."""
        of_all = _of_all(plans)
        _refuse_different(of_all)
        self._plans = plans
        self._of_clients = [plan for plan in plans.values() if isinstance(plan, ClientPlans)]
        self.adjacency, self._order = of_all[0].adjacency, of_all[0].order
        self.delta = min(plan.delta for plan in of_all)
        certifiers = {plan.certifier for plan in of_all if plan.delta == self.delta}
        self.certifier = "rdp" if "rdp" in certifiers else certifiers.pop()  # rdp certifies any delta
        self.are_disjoint = bool(self._of_clients) and all(plan.are_disjoint for plan in self._of_clients)
        unit = of_all[0].unit
        self.groups: dict[str, tuple[Segment, ...]] = ledger.groups(unit, disjoint=self.are_disjoint)
        self.num_releases = sum(part.steps for part in ledger.segments(unit=unit))

    def spent(self, accountant: str) -> float:
        how = {"accountant": accountant, "order": self._order, "adjacency": self.adjacency}
        return composition.epsilon(self.groups, self.delta, **how).epsilon

    def repeated(self, steps: Mapping[str, int]) -> int:
        """Releases of steps that were taken before."""
        by_client = (
            sum(plan.steps(name).values()) for name, plan in self._plans.items() if isinstance(plan, ClientPlans)
        )
        return max(0, self.num_releases - sum(steps.values()) - sum(by_client))

    def about_clients(self, prices: Mapping[str, Guarantee]) -> dict[str, Any]:
        """Whether the clients are disjoint, and then which of them pays most: its certificate is told."""
        if not self._of_clients:
            return {}
        largest = max(prices, key=lambda client: prices[client].epsilon) if self.are_disjoint else None
        return {"are_disjoint": self.are_disjoint, "largest_client": largest}


def _of_all(plans: Plans) -> list[PrivacyPlan]:
    """Those of clients among the others."""
    found: list[PrivacyPlan] = []
    for plan in plans.values():
        found += plan.plans.values() if isinstance(plan, ClientPlans) else [plan]
    return found


def _flags(flags: Sequence[str], plans: Plans) -> list[str]:
    large_delta = any(plan.delta * plan.dataset_size >= 1 for plan in _of_all(plans))
    return [*flags, *(["delta >= 1/N"] if large_delta else [])]


def price_rows(privacy: Mapping[str, Any]) -> list[Result]:
    """The price of a private run, from its privacy.json, as rows of result.json."""
    rows = [
        Result("epsilon", float(privacy["epsilon"]), "epsilon"),
        Result("epsilon_edgeworth", float(privacy["estimates"]["edgeworth"]), "epsilon (estimate)"),
    ]
    for name, own in privacy.get("stages", {None: {}}).items():
        stage = {**privacy, **own}
        noises = {"": stage["noise_multiplier"]} | {f"_{by}": value for by, value in stage["noise_multipliers"].items()}
        for by, value in noises.items():
            rows += _rows(f"noise_multiplier{by}", value, "clipping norms", name)
        if "num_clients" in stage:
            rows += _rows("num_clients", stage["num_clients"], "clients", name)
            rows += _rows("sampling_rate", stage["sampling_rate"], "fraction", name)
        if stage["saving_vs_rdp_percent"] is not None:
            rows += _rows("saving_vs_rdp", stage["saving_vs_rdp_percent"], "percent", name)
    return rows


def _rows(metric: str, value: Any, unit: str, split: str | None) -> list[Result]:
    """One row, or two for what lies between two values."""
    if not isinstance(value, list):
        return [Result(metric, float(value), unit, split=split)]
    return [
        Result(f"{metric}_{end}", float(bound), unit, split=split)
        for end, bound in zip(("min", "max"), value, strict=True)
    ]


_TOLD_TOGETHER = ("mechanism", "unit", "adjacency", "order")
_OF_EACH_STAGE = ("steps", "planned_steps", "planned_epsilon", "noise_multiplier", "noise_multipliers")
_OF_THE_LEDGER = ("epsilon", "bounds", "estimates")
_ABSENT = object()


def _refuse_different(plans: Sequence[PrivacyPlan]) -> None:
    for name in _TOLD_TOGETHER:
        values = {str(getattr(plan, name)) for plan in plans}
        if len(values) > 1:
            raise UsageError(
                f"privacy.{name} differs between the stages of this run ({', '.join(sorted(values))}), and one epsilon "
                "cannot be told for both: give them one"
            )


def _facts(plans: Plans, steps: Mapping[str, int], asked: _Question, prices: Mapping[str, Guarantee]) -> dict[str, Any]:
    """What the plans say: of one plan all, of several what they share, and the rest by `stages`."""
    facts = {
        name: _facts_of_clients(plan, name, asked, prices)
        if isinstance(plan, ClientPlans)
        else _facts_of(plan, steps[name])
        for name, plan in plans.items()
    }
    first, *others = facts.values()
    if not others:
        return first
    names = {name for values in facts.values() for name in values}
    own = {name for name in names if any(other.get(name, _ABSENT) != first.get(name, _ABSENT) for other in others)}
    own = own - {*_OF_THE_LEDGER} | {*_OF_EACH_STAGE, "saving_vs_rdp_percent"}
    shared = {name: value for name, value in first.items() if name not in own}
    return (
        {"target_epsilon": None}
        | shared
        | {"stages": {stage: {name: values[name] for name in values if name in own} for stage, values in facts.items()}}
    )


def _facts_of(plan: PrivacyPlan, steps: int) -> dict[str, Any]:
    planned = {"planned_steps": plan.steps, "planned_epsilon": plan.epsilon}
    return plan.to_dict() | {"noise_set_by": plan.accountant} | planned | {"steps": steps}


def _facts_of_clients(
    plans: ClientPlans, stage: str, asked: _Question, prices: Mapping[str, Guarantee]
) -> dict[str, Any]:
    """The epsilon of a client is of all that its records were in; where they may be in others' too, none is told."""
    facts = plans.facts(stage)
    for client, numbers in facts["clients"].items():
        numbers["epsilon"] = json_number(prices[client].epsilon) if client in prices else None
    planned = plans.planned_epsilon(asked.delta, asked.certifier)
    return facts | {"noise_set_by": facts["accountant"], "planned_epsilon": planned}
