"""What a private training run will cost and which noise it needs, known before the first step.

The certified epsilon is always computed, whatever accountant has set the noise; an estimate stands beside it and never
in its place. What no accountant certifies is refused here, before anything is trained. Imports no torch: dry runs and
tables use it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from privlm.errors import UsageError
from privlm.privacy import accounting
from privlm.privacy.accounting import Segment, pld
from privlm.privacy.accounting.types import merge


@dataclass(frozen=True)
class PrivacyPlan:
    """The mechanism of a run: sampling, clipping, noise, and its price.

    unit: what dataset_size and expected_batch_size count: records, or with unit client the clients of a federated run,
        whose rounds are the steps.
    epsilon: certified by `certifier` for all `steps` and what is `spent`; at most target_epsilon unless an estimate has
        set the noise.
    bounds: certified epsilons of other accountants at this noise; estimates: what the others say, not guarantees.
    noise_multipliers: what each accountant would ask for to keep target_epsilon (empty without a target).
    spent: released by earlier stages, out of the same budget.
    """

    dataset_size: int
    expected_batch_size: float
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
    unit: str
    mechanism: str
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


def make_plan(
    privacy: Any,
    *,
    dataset_size: int,
    batch_size: float,
    steps: int,
    compare: bool = True,
    spent: Sequence[Segment] = (),
    share: float = 1.0,
    unit: str = "record",
    mechanism: str = "dp_sgd",
    delta: float | None = None,
    noise_multiplier: float | None = None,
) -> PrivacyPlan:
    """The plan of a run, or of one private stage of it.

    privacy: a PrivacyConfig (privlm.privacy.schema), or any object with its fields.
    batch_size: the expected size of a Poisson batch, so that the sampling rate is batch_size / dataset_size.
    unit, mechanism: of client-level privacy client and dp_fedavg: dataset_size is then the number of clients,
        batch_size the expected number of those in a round, steps the rounds.
    delta, noise_multiplier: in place of privacy's own, where several plans make one promise together.
    compare: whether to find the noise that every accountant would ask for, or only that which is used.
    spent: what earlier stages have released; with this stage it must stay within privacy.epsilon.
    share: of privacy.epsilon that may be spent when this stage ends; the rest is for later ones.

    Raises UsageError for a batch larger than the data set, a delta that protects nobody or that no accountant
    certifies, noise that is none, a target out of reach, or a budget that is spent.
    """
    _refuse_large_batch(batch_size, dataset_size, unit)
    target: Any = None if privacy.epsilon is None else share * privacy.epsilon
    delta = accounting.resolve_delta(privacy.delta, dataset_size) if delta is None else delta
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
    noise = privacy.noise_multiplier if noise_multiplier is None else noise_multiplier
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
        unit=unit,
        mechanism=mechanism,
        bounds={"rdp": price("rdp")},
        estimates={"gdp": price("gdp"), "edgeworth": price("edgeworth")},
        noise_multipliers=multipliers,
        warnings=tuple(warnings),
        spent=tuple(spent),
        certifier=certifier,
    )


def _refuse_large_batch(batch_size: float, dataset_size: int, unit: str) -> None:
    if batch_size <= dataset_size:
        return
    if unit == "client":
        raise UsageError(
            f"federated.fraction: {batch_size:g} clients of {dataset_size} are expected in a round: lower it to at "
            "most 1"
        )
    raise UsageError(
        f"trainer.batch_size={batch_size} is larger than the training set ({dataset_size} records): lower it"
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
