"""What a private training run will cost and which noise it needs, known before the first step.

The certified epsilon (PLD) is always computed, whatever accountant has set the noise; an estimate stands beside it and
never in its place. Imports no torch: dry runs and tables use it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger


@dataclass(frozen=True)
class PrivacyPlan:
    """The mechanism of a run: sampling, clipping, noise, and its price.

    epsilon: certified by PLD for all `steps`; at most target_epsilon unless an estimate has set the noise.
    bounds: certified epsilons of other accountants at this noise; estimates: what the others say, not guarantees.
    noise_multipliers: what each accountant would ask for to keep target_epsilon (empty without a target).
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

    def describe(self) -> str:
        """The price in one line: certified epsilon first, the estimate named as one."""
        return (
            f"certified epsilon {self.epsilon:.4f} at delta {self.delta:.3g} after {self.steps} steps "
            f"(Edgeworth estimate {self.estimates['edgeworth']:.4f})"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"saving_vs_rdp_percent": self.saving_vs_rdp, "warnings": list(self.warnings)}


def account(plan: PrivacyPlan, ledger: Ledger, *, steps: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The content of privacy.json: the plan, with what the ledger says was really spent.

    steps: taken so far. Releases above that number are steps taken again with fresh noise after a kill; they cost, too.
    """
    segments = ledger.segments()

    def spent(accountant: str) -> float:
        answer = accounting.epsilon(
            segments, plan.delta, accountant=accountant, order=plan.order, adjacency=plan.adjacency
        )
        return answer.epsilon

    large_delta = ["delta >= 1/N"] if plan.delta * plan.dataset_size >= 1 else []
    certified = accounting.epsilon(segments, plan.delta, adjacency=plan.adjacency)
    return plan.to_dict() | {
        "accountant": certified.accountant,
        "noise_set_by": plan.accountant,
        "planned_steps": plan.steps,
        "planned_epsilon": plan.epsilon,
        "steps": steps,
        "repeated_releases": max(0, sum(segment.steps for segment in segments) - steps),
        "epsilon": certified.epsilon,
        "guarantee": certified.guarantee,
        "certificate": certified.to_dict(),
        "bounds": {"rdp": spent("rdp")},
        "estimates": {"edgeworth": spent("edgeworth"), "gdp": spent("gdp")},
        "flags": [*flags, *large_delta],
    }


def make_plan(privacy: Any, *, dataset_size: int, batch_size: int, steps: int) -> PrivacyPlan:
    """The plan of a run.

    privacy: a PrivacyConfig (privlm.privacy.schema), or any object with its fields.
    batch_size: the expected size of a Poisson batch, so that the sampling rate is batch_size / dataset_size.

    Raises UsageError for a batch larger than the data set, a delta that protects nobody, or a target out of reach.
    """
    if batch_size > dataset_size:
        raise UsageError(
            f"trainer.batch_size={batch_size} is larger than the training set ({dataset_size} records): lower it"
        )
    delta = accounting.resolve_delta(privacy.delta, dataset_size)
    warnings = accounting.check_delta(delta, dataset_size, privacy.allow_large_delta)
    setting = {
        "delta": delta,
        "sampling_rate": batch_size / dataset_size,
        "steps": steps,
        "adjacency": privacy.adjacency,
    }
    multipliers = {}
    noise = privacy.noise_multiplier
    if noise is None:
        multipliers = _by_accountant(privacy, setting)
        noise = multipliers[privacy.accountant]
        if privacy.strict and privacy.accountant in ("gdp", "edgeworth"):
            warnings.append(
                f"privacy.strict: the {privacy.accountant} estimate would set noise_multiplier={noise:.4f}, which is "
                f"not a guarantee; the certified {multipliers['pld']:.4f} is used"
            )
            noise = multipliers["pld"]
    segment = [Segment(setting["sampling_rate"], noise, steps)]

    def spent(accountant: str) -> float:
        answer = accounting.epsilon(
            segment, delta, accountant=accountant, order=privacy.order, adjacency=privacy.adjacency
        )
        return answer.epsilon

    return PrivacyPlan(
        dataset_size=dataset_size,
        expected_batch_size=batch_size,
        steps=steps,
        sampling_rate=setting["sampling_rate"],
        noise_multiplier=noise,
        clipping=privacy.clipping,
        clipping_norm=privacy.clipping_norm,
        delta=delta,
        target_epsilon=privacy.epsilon,
        epsilon=spent("pld"),
        accountant=privacy.accountant,
        order=privacy.order,
        adjacency=privacy.adjacency,
        sampling=privacy.sampling,
        rng=privacy.rng,
        bounds={"rdp": spent("rdp")},
        estimates={"gdp": spent("gdp"), "edgeworth": spent("edgeworth")},
        noise_multipliers=multipliers,
        warnings=tuple(warnings),
    )


def _by_accountant(privacy: Any, setting: dict[str, Any]) -> dict[str, float]:
    return {
        accountant: accounting.noise_multiplier(
            target_epsilon=privacy.epsilon, accountant=accountant, order=privacy.order, **setting
        ).noise_multiplier
        for accountant in accounting.ACCOUNTANTS
    }
