"""What a private training run will cost and which noise it needs, known before the first step.

The certified epsilon is always computed, whatever accountant has set the noise; an estimate stands beside it and never
in its place. What no accountant certifies is refused here, before anything is trained. Imports no torch: dry runs and
tables use it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment, pld
from privlm.privacy.accounting.types import json_number, merge
from privlm.privacy.ledger import Ledger
from privlm.results import Result


@dataclass(frozen=True)
class PrivacyPlan:
    """The mechanism of a run: sampling, clipping, noise, and its price.

    epsilon: certified by `certifier` for all `steps` and what is `spent`; at most target_epsilon unless an estimate has
        set the noise.
    bounds: certified epsilons of other accountants at this noise; estimates: what the others say, not guarantees.
    noise_multipliers: what each accountant would ask for to keep target_epsilon (empty without a target).
    spent: released by earlier stages, out of the same budget.
    """

    dataset_size: int
    expected_batch_size: int
    steps: int
    sampling_rate: float
    noise_multiplier: float
    clipping: str
    clipping_norm: float
    delta: float
    target_epsilon: float | None
    epsilon: float
    accountant: str
    order: int
    adjacency: str
    sampling: str
    rng: str
    unit: str = "record"
    mechanism: str = "dp_sgd"
    bounds: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)
    noise_multipliers: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    spent: tuple[Segment, ...] = ()
    certifier: str = "pld"

    @property
    def step(self) -> Segment:
        """One step of the mechanism, as the accountants see it."""
        return Segment(self.sampling_rate, self.noise_multiplier, 1)

    @property
    def budget(self) -> float:
        """The certified epsilon that training must not exceed.

        Above the target only where the user let an estimate set the noise: the certified price of the planned steps was
        accepted then. Infinite where the user gave a noise multiplier instead of a budget.
        """
        if self.target_epsilon is None:
            return math.inf
        return max(self.target_epsilon, self.epsilon)

    @property
    def saving_vs_rdp(self) -> float | None:
        """Percent less noise than RDP asks for; None without a target or where this noise breaks the budget."""
        rdp = self.noise_multipliers.get("rdp")
        if rdp is None or self.target_epsilon is None or self.epsilon > self.target_epsilon:
            return None
        return 100 * (1 - self.noise_multiplier / rdp)

    def covers(self, segments: Iterable[Segment]) -> bool:
        """Whether `epsilon` is the price of all this and perhaps of more, so that no accountant has to be asked."""
        planned = {_kind(part): part.steps for part in merge([*self.spent, replace(self.step, steps=self.steps)])}
        return all(part.steps <= planned.get(_kind(part), 0) for part in merge(segments))

    def describe(self) -> str:
        """The price of the whole plan in one line: certified epsilon first, the estimate named as one."""
        by = "" if self.certifier == "pld" else f" by {self.certifier}"
        epsilon = math.ceil(self.epsilon * 1e4) / 1e4  # rounded down it would promise more than is certified
        return (
            f"certified epsilon {epsilon:.4f}{by} at delta {self.delta:.3g} after {self.steps} steps"
            f"{' and the stages before' if self.spent else ''} "
            f"(Edgeworth estimate {self.estimates['edgeworth']:.4f})"
        )

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self) | {"saving_vs_rdp_percent": self.saving_vs_rdp, "warnings": list(self.warnings)}
        del fields["spent"]  # a run's ledger says what was spent
        return fields


def account(
    plans: PrivacyPlan | Mapping[str, PrivacyPlan],
    ledger: Ledger,
    *,
    steps: int | Mapping[str, int],
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of privacy.json at the end: the plan, with what the ledger says was really spent.

    plans, steps: of the one private stage of a run, or of each by its name. steps: taken so far. Releases above that
    number are steps taken again with fresh noise after a kill; they cost, too.

    With several stages the figures are of the whole ledger, delta is the smallest, and `stages` holds for each stage
    what is its own. Raises UsageError where stages differ in what one epsilon is told for.
    """
    if isinstance(plans, PrivacyPlan):
        assert isinstance(steps, int)
        plans, steps = {"": plans}, {"": steps}
    assert not isinstance(steps, int)
    _refuse_different(plans)
    plan, delta = next(iter(plans.values())), min(plan.delta for plan in plans.values())
    segments = ledger.segments(unit=plan.unit)

    def spent(accountant: str) -> float:
        answer = accounting.epsilon(segments, delta, accountant=accountant, order=plan.order, adjacency=plan.adjacency)
        return answer.epsilon

    certifier = min(plans.values(), key=lambda plan: plan.delta).certifier
    certified = accounting.epsilon(segments, delta, accountant=certifier, adjacency=plan.adjacency)
    return _facts(plans, steps) | {
        "final": True,
        "delta": delta,
        "accountant": certifier,
        "repeated_releases": max(0, sum(segment.steps for segment in segments) - sum(steps.values())),
        "epsilon": certified.epsilon,
        "guarantee": certified.guarantee,
        "certificate": certified.to_dict(),
        "bounds": {"rdp": spent("rdp")},
        "estimates": {"edgeworth": spent("edgeworth"), "gdp": spent("gdp")},
        "flags": _flags(flags, plans),
    }


def account_so_far(
    plans: Mapping[str, PrivacyPlan], ledger: Ledger, *, flags: Sequence[str] = (), discretization: float | None = None
) -> dict[str, Any]:
    """The content of privacy.json while the run works: the plans, and under `spent` what the ledger holds by now.

    Nothing here is a guarantee of the run, which may release more the next moment.
    discretization: of the grid of PLD, see accounting.epsilon.
    """
    _refuse_different(plans)
    plan, delta = next(iter(plans.values())), min(plan.delta for plan in plans.values())
    steps = {name: len({r.step for r in ledger.releases if r.stage == name}) for name in plans}
    segments = ledger.segments(unit=plan.unit)
    certifier = min(plans.values(), key=lambda plan: plan.delta).certifier
    grid = discretization if certifier == "pld" else None
    price = accounting.epsilon(segments, delta, accountant=certifier, adjacency=plan.adjacency, discretization=grid)
    releases = sum(segment.steps for segment in segments)
    return _facts(plans, steps) | {
        "final": False,
        "delta": delta,
        "accountant": certifier,
        "repeated_releases": max(0, releases - sum(steps.values())),
        "epsilon": None,
        "guarantee": False,
        "spent": {"releases": releases, "epsilon": json_number(price.epsilon), "certified": price.guarantee},
        "certificate": None,
        "bounds": {},
        "estimates": {},
        "flags": _flags(flags, plans),
    }


def _flags(flags: Sequence[str], plans: Mapping[str, PrivacyPlan]) -> list[str]:
    large_delta = any(plan.delta * plan.dataset_size >= 1 for plan in plans.values())
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
        rows += [
            Result(f"noise_multiplier{by}", float(value), "clipping norms", split=name) for by, value in noises.items()
        ]
        if stage["saving_vs_rdp_percent"] is not None:
            rows.append(Result("saving_vs_rdp", float(stage["saving_vs_rdp_percent"]), "percent", split=name))
    return rows


_TOLD_TOGETHER = ("mechanism", "unit", "adjacency", "order")
_OF_EACH_STAGE = ("steps", "planned_steps", "planned_epsilon", "noise_multiplier", "noise_multipliers")
_OF_THE_LEDGER = ("epsilon", "bounds", "estimates")


def _refuse_different(plans: Mapping[str, PrivacyPlan]) -> None:
    for name in _TOLD_TOGETHER:
        values = {str(getattr(plan, name)) for plan in plans.values()}
        if len(values) > 1:
            raise UsageError(
                f"privacy.{name} differs between the stages of this run ({', '.join(sorted(values))}), and one epsilon "
                "cannot be told for both: give them one"
            )


def _facts(plans: Mapping[str, PrivacyPlan], steps: Mapping[str, int]) -> dict[str, Any]:
    """What the plans say: of one plan all, of several what they share, and the rest by `stages`."""
    facts = {
        name: plan.to_dict()
        | {
            "noise_set_by": plan.accountant,
            "planned_steps": plan.steps,
            "planned_epsilon": plan.epsilon,
            "steps": steps[name],
        }
        for name, plan in plans.items()
    }
    first, *others = facts.values()
    if not others:
        return first
    own = {name for name, value in first.items() if any(other[name] != value for other in others)}
    own = own - {*_OF_THE_LEDGER} | {*_OF_EACH_STAGE, "saving_vs_rdp_percent"}
    shared = {name: value for name, value in first.items() if name not in own}
    return (
        {"target_epsilon": None}
        | shared
        | {"stages": {stage: {name: values[name] for name in values if name in own} for stage, values in facts.items()}}
    )


def make_plan(
    privacy: Any,
    *,
    dataset_size: int,
    batch_size: int,
    steps: int,
    compare: bool = True,
    spent: Sequence[Segment] = (),
    share: float = 1.0,
) -> PrivacyPlan:
    """The plan of a run, or of one private stage of it.

    privacy: a PrivacyConfig (privlm.privacy.schema), or any object with its fields.
    batch_size: the expected size of a Poisson batch, so that the sampling rate is batch_size / dataset_size.
    compare: whether to find the noise that every accountant would ask for, or only that which is used.
    spent: what earlier stages have released; with this stage it must stay within privacy.epsilon.
    share: of privacy.epsilon that may be spent when this stage ends; the rest is for later ones.

    Raises UsageError for a batch larger than the data set, a delta that protects nobody or that no accountant
    certifies, noise that is none, a target out of reach, or a budget that is spent.
    """
    if batch_size > dataset_size:
        raise UsageError(
            f"trainer.batch_size={batch_size} is larger than the training set ({dataset_size} records): lower it"
        )
    target: Any = None if privacy.epsilon is None else share * privacy.epsilon
    delta = accounting.resolve_delta(privacy.delta, dataset_size)
    warnings = accounting.check_delta(delta, dataset_size, privacy.allow_large_delta)
    sampling_rate = batch_size / dataset_size
    certifier = _certifier(privacy.accountant, delta, [*spent, Segment(sampling_rate, 1.0, steps)])

    def multiplier(accountant: str) -> float:
        return accounting.noise_multiplier(
            target_epsilon=target,
            delta=delta,
            sampling_rate=sampling_rate,
            steps=steps,
            accountant=accountant,
            order=privacy.order,
            adjacency=privacy.adjacency,
            spent=spent,
        ).noise_multiplier

    multipliers = {}
    noise = privacy.noise_multiplier
    if noise is None:
        distrusted = privacy.strict and privacy.accountant in ("gdp", "edgeworth")
        used = (privacy.accountant, certifier) if distrusted else (privacy.accountant,)
        askable = [name for name in accounting.ACCOUNTANTS if name != "pld" or certifier == "pld"]
        multipliers = {name: multiplier(name) for name in (askable if compare else used)}
        noise = multipliers[privacy.accountant]
        if distrusted:
            warnings.append(
                f"privacy.strict: the {privacy.accountant} estimate would set noise_multiplier={noise:.4f}, which is "
                f"not a guarantee; the certified {multipliers[certifier]:.4f} is used"
            )
            noise = multipliers[certifier]
    segments = [*spent, Segment(sampling_rate, noise, steps)]

    def price(accountant: str) -> float:
        answer = accounting.epsilon(
            segments, delta, accountant=accountant, order=privacy.order, adjacency=privacy.adjacency
        )
        return answer.epsilon

    epsilon = price(certifier)
    _refuse_useless(noise, epsilon)
    return PrivacyPlan(
        dataset_size=dataset_size,
        expected_batch_size=batch_size,
        steps=steps,
        sampling_rate=sampling_rate,
        noise_multiplier=noise,
        clipping=privacy.clipping,
        clipping_norm=privacy.clipping_norm,
        delta=delta,
        target_epsilon=target,
        epsilon=epsilon,
        accountant=privacy.accountant,
        order=privacy.order,
        adjacency=privacy.adjacency,
        sampling=privacy.sampling,
        rng=privacy.rng,
        bounds={"rdp": price("rdp")},
        estimates={"gdp": price("gdp"), "edgeworth": price("edgeworth")},
        noise_multipliers=multipliers,
        warnings=tuple(warnings),
        spent=tuple(spent),
        certifier=certifier,
    )


def _certifier(accountant: str, delta: float, segments: Sequence[Segment]) -> str:
    """Whose epsilon the run is told by. Raises UsageError where it would be none's.

    pld keeps half of delta for steps that are taken again after a kill.
    """
    least = max(accounting.MIN_CERTIFIED_DELTAS["pld"], 2 * pld.round_off(segments))
    if delta >= least:
        return "pld"
    if accountant == "rdp":
        return "rdp"
    raise UsageError(
        f"privacy.delta = {delta:.3g} is below {least:.3g}, where round-off leaves accountant pld no certificate: "
        "raise privacy.delta, or take privacy.accountant=rdp, which certifies any delta"
    )


def _refuse_useless(noise: float, epsilon: float) -> None:
    if math.isinf(noise):
        raise UsageError("privacy.noise_multiplier=inf leaves nothing to learn from: give a finite one")
    if math.isinf(epsilon):
        raise UsageError(
            f"privacy.noise_multiplier={noise:g} promises nothing (epsilon is infinite): raise it, or use privacy=none"
        )


def _kind(segment: Segment) -> tuple[float, float]:
    return segment.sampling_rate, segment.noise_multiplier
