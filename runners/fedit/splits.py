"""The rows that a run learns from and those that it is measured on, with no question on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from privlm.data.contamination import normalised
from privlm.data.instructions import Instruction, Instructions, Template, load_instructions
from privlm.errors import UsageError


@dataclass(frozen=True)
class Splits:
    """train: of the clients and categories that the run learns from. test: of all.

    clients: of all training rows, sorted. notes: what was left out and counted, in words, for the report.
    """

    train: list[Instruction]
    test: list[Instruction]
    template: Template
    clients: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def categories(self) -> list[str]:
        """Of the test rows, sorted."""
        return sorted({row.category for row in self.test if row.category is not None})


def load(config: Any) -> Splits:
    """Raises UsageError as `load_instructions`, and for a client or a category that no training row has."""
    data = load_instructions(config.data)
    test = _only_split(data, config.data)
    train, notes = _apart(data.train, test)
    for field, of_row in GROUPS.items():
        train = _only(train, config.task[field], field, of_row)
    rows = {category for row in train if (category := row.category) is not None}
    absent = sorted({row.category for row in test if row.category is not None} - rows) if rows else []
    if absent and config.task.only_client is None and config.task.only_category is None:
        notes.append(f"categories of the test rows that no training row has: {', '.join(absent)}")
    return Splits(train, test, data.template, data.clients, (*data.notes, *notes))


GROUPS: dict[str, Callable[[Instruction], str | None]] = {
    "only_client": lambda row: row.client,
    "only_category": lambda row: row.category,
}
"""Field of the task -> the group of a row that it names."""


def _only_split(data: Instructions, config: Any) -> list[Instruction]:
    if len(data.evaluation) != 1:
        raise UsageError(f"data.eval_splits: name one split, not {', '.join(config.eval_splits)}")
    return next(iter(data.evaluation.values()))


def _apart(train: Sequence[Instruction], test: Sequence[Instruction]) -> tuple[list[Instruction], list[str]]:
    """Training rows whose question no test row asks, and what there is to say of them.

    Questions are compared by their letters and digits, whatever the case.
    """
    asked = {normalised(row.question) for row in test}
    kept = [row for row in train if normalised(row.question) not in asked]
    num_equal = sum(times - 1 for times in Counter((row.question, row.response) for row in kept).values())
    counts = {
        "training rows left out, whose question a test row asks": len(train) - len(kept),
        "training rows repeat another one, and stay": num_equal,
    }
    return kept, [f"{count:,} {what}" for what, count in counts.items() if count]


def _only(
    rows: list[Instruction], name: str | None, field: str, group_of: Callable[[Instruction], str | None]
) -> list[Instruction]:
    found = rows if name is None else [row for row in rows if group_of(row) == name]
    if not found:
        kind = field.removeprefix("only_")
        there = sorted({group for row in rows if (group := group_of(row)) is not None})
        known = (
            f"there are {', '.join(there)}" if there else f"no row has a {kind} (a column '{kind}', or data.aliases)"
        )
        raise UsageError(f"task.{field}={name}: no training row is of this {kind}; {known}")
    return found
