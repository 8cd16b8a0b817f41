"""The plans of the clients of a federated stage, each of which trains under privacy of its own records.

Data sets differ in size, and so do sampling rates and noise. One epsilon is told for all at one delta: that of the
client that pays most where no record belongs to two of them, else that of everything composed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from privlm.errors import UsageError
from privlm.privacy import accounting, composition
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan, make_plan


@dataclass(frozen=True)
class ClientPlans:
    """What a federated stage tells of its privacy (Price.stages), whose clients each have a ledger of their own.

    plans, ledgers: by client, the ledgers as the stage sees them.
    are_disjoint: whether the caller has seen, by digests of the records, that none belongs to two clients. Clients of
        one id have the same records in every stage of a run.
    """

    plans: Mapping[str, PrivacyPlan]
    ledgers: Mapping[str, Ledger]
    are_disjoint: bool

    def __post_init__(self) -> None:
        assert self.plans, "a federated stage has clients"
        assert self.plans.keys() == self.ledgers.keys(), "every client has a plan and a ledger"

    def steps(self, stage: str) -> dict[str, int]:
        """Of each client, taken so far."""
        return {client: len({release.step for release in self._of(client, stage)}) for client in self.plans}

    def planned_epsilon(self, delta: float, certifier: str) -> float:
        """Certified price of all plans together, and of what was spent before them."""
        if self.are_disjoint and {(plan.delta, plan.certifier) for plan in self.plans.values()} == {(delta, certifier)}:
            return max(plan.epsilon for plan in self.plans.values())
        groups = {client: (*plan.spent, replace(plan.step, steps=plan.steps)) for client, plan in self.plans.items()}
        if not self.are_disjoint:
            steps = (segments[-1] for segments in groups.values())
            groups = {"": (*next(iter(self.plans.values())).spent, *steps)}
        adjacency = next(iter(self.plans.values())).adjacency
        return composition.epsilon(groups, delta, accountant=certifier, adjacency=adjacency).epsilon

    def facts(self, stage: str) -> dict[str, Any]:
        """What privacy.json holds of the stage: what all clients share, of numbers that differ [least, most], and under
        `clients` the numbers of each.
        """
        of_each = [plan.to_dict() for plan in self.plans.values()]
        shared = {name: span([facts[name] for facts in of_each]) for name in of_each[0]}
        warnings = [warning for facts in of_each for warning in facts["warnings"]]
        clients = self._numbers(stage)
        return shared | {
            "warnings": list(dict.fromkeys(warnings)),
            "num_clients": len(clients),
            "clients": clients,
            **{name: span([numbers[name] for numbers in clients.values()]) for name in ("steps", "planned_steps")},
        }

    def _numbers(self, stage: str) -> dict[str, dict[str, Any]]:
        steps = self.steps(stage)
        return {
            client: {name: getattr(plan, name) for name in _OF_A_CLIENT}
            | {
                "planned_steps": plan.steps,
                "planned_epsilon": plan.epsilon,
                "steps": steps[client],
                "releases": len({release.noise_id for release in self._of(client, stage)}),
            }
            for client, plan in self.plans.items()
        }

    def _of(self, client: str, stage: str) -> list[Any]:
        releases = self.ledgers[client].releases
        return [release for release in releases if (release.stage, release.population) == (stage, client)]


_OF_A_CLIENT = ("dataset_size", "expected_batch_size", "sampling_rate", "noise_multiplier")


def span(values: Sequence[Any]) -> Any:
    """What all are; of numbers that differ [least, most], of mappings that of each key that all have, else None."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, dict) for value in values):
        return {key: span([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if all(isinstance(value, int | float) for value in values):
        return [min(values), max(values)]
    return None


def make_client_plans(
    privacy: Any,
    *,
    sizes: Mapping[str, int],
    batch_size: int,
    steps: int | Mapping[str, int],
    are_disjoint: bool,
    compare: bool = False,
    spent: Mapping[str, Sequence[Segment]] | None = None,
) -> dict[str, PrivacyPlan]:
    """The plans of all clients of a federated stage, at one delta: for 1/2N that of the largest client, the smallest.

    sizes: records of each client. steps: of each in the whole stage, or of all alike. compare: as for make_plan.
    spent: by earlier stages out of the same budget, as Accounts.groups gives it.

    Where clients may share records, each takes the noise that keeps privacy.epsilon for the steps of all at the highest
    sampling rate: more than is needed where the rates differ.

    Raises UsageError as make_plan, naming the client. Clients of equal size and steps are planned once.
    """
    delta = accounting.resolve_delta(privacy.delta, max(sizes.values()))
    steps_of = {client: steps if isinstance(steps, int) else steps[client] for client in sizes}
    before = {client: tuple(_spent_by(client, spent or {})) for client in sizes}
    how: dict[str, Any] = {"batch_size": batch_size, "compare": compare, "delta": delta}

    @cache
    def plan_of(size: int, num_steps: int, spent: tuple[Segment, ...]) -> PrivacyPlan:
        noise = None if pooled is None else pooled.noise_multiplier
        plan = make_plan(privacy, dataset_size=size, steps=num_steps, spent=spent, noise_multiplier=noise, **how)
        return plan if pooled is None else replace(plan, noise_multipliers=pooled.noise_multipliers)

    pooled: PrivacyPlan | None = None  # one client with the steps of all, where a record may be with all
    plans: dict[str, PrivacyPlan] = {}
    for client in sorted(sizes, key=lambda client: sizes[client]):
        try:
            if not plans and not are_disjoint:
                total = sum(steps_of.values())
                pooled = make_plan(privacy, dataset_size=sizes[client], steps=total, spent=before[client], **how)
            plans[client] = plan_of(sizes[client], steps_of[client], before[client])
        except UsageError as error:
            raise UsageError(f"client {client}: {error}") from error
    return {client: plans[client] for client in sizes}


def _spent_by(client: str, spent: Mapping[str, Sequence[Segment]]) -> Sequence[Segment]:
    """A client that released nothing yet, and those that may share records, have spent what is told for all."""
    return spent.get(client, spent.get("", ()))
