"""What an accountant is asked about releases: which of them one unit pays for together, and what that costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from privlm.errors import UsageError
from privlm.privacy.ledger_chain import Kind

if TYPE_CHECKING:
    from privlm.privacy.accounting import Guarantee, Segment

Groups = Mapping[str, "tuple[Segment, ...]"]
"""Population -> the releases that a unit of it pays for; "" where all are composed."""


def segments(
    num_steps: Mapping[Kind, int], unit: str | None, populations: Container[str] | None = None
) -> list[Segment]:
    """What an accountant counts: releases for `unit`, of these populations, or of all.

    num_steps: distinct noise of each kind. Raises UsageError where units differ and none is named.
    """
    from privlm.privacy.accounting import Segment

    units = {kind.unit for kind in num_steps}
    if unit is None and len(units) > 1:
        raise UsageError(f"the ledger protects different units ({', '.join(sorted(units))}): ask for each alone, unit=")
    steps: Counter[tuple[float, float]] = Counter()
    for kind, count in num_steps.items():
        if unit in (None, kind.unit) and (populations is None or kind.population in populations):
            steps[kind.sampling_rate, kind.noise_multiplier] += count
    return [Segment(rate, multiplier, count) for (rate, multiplier), count in steps.items()]


def groups(num_steps: Mapping[Kind, int], unit: str | None, *, disjoint: bool) -> dict[str, tuple[Segment, ...]]:
    """The releases that a unit pays for, by its population.

    disjoint: whether the caller has seen that no unit belongs to two populations. Then a unit pays for the releases of
    its own and for those that name none; otherwise it may belong to all, and pays for all: the one group "".
    """
    populations = sorted({kind.population for kind in num_steps} - {""}) if disjoint else []
    if not populations:
        return {"": tuple(segments(num_steps, unit))}
    return {population: tuple(segments(num_steps, unit, {"", population})) for population in populations}


def of_each(groups: Groups, delta: float, **how: Any) -> dict[str, Guarantee]:
    """What each population pays at `delta`. how: as for accounting.epsilon; equal releases are asked about once."""
    from privlm.privacy import accounting
    from privlm.privacy.accounting.types import merge

    answers: dict[tuple[Segment, ...], Guarantee] = {}
    for group in groups.values():
        if merge(group) not in answers:
            answers[merge(group)] = accounting.epsilon(group, delta, **how)
    return {name: answers[merge(group)] for name, group in groups.items()}


def largest(answers: Iterable[Guarantee]) -> Guarantee:
    """What holds for every unit: the largest epsilon, a guarantee where each of them is one."""
    answers = list(answers)
    worst = max(answers, key=lambda answer: answer.epsilon)
    return worst if all(answer.guarantee for answer in answers) else replace(worst, guarantee=False)


def epsilon(groups: Groups, delta: float, **how: Any) -> Guarantee:
    """What no unit exceeds at `delta`."""
    return largest(of_each(groups, delta, **how).values())
