"""Instructions and the responses to learn: columns instruction, context, response, or conversations (messages).

The columns may have other names in a file (data.aliases). Which template makes the prompt is data.template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privlm import content
from privlm.content import Content
from privlm.data.held_out import digest, is_held_out
from privlm.data.locate import DataFiles, locate_instructions
from privlm.data.readers import read_table
from privlm.data.schema import InstructionData
from privlm.data.table import Table, is_text, names_in_files
from privlm.errors import UsageError

ROLES = ("system", "user", "assistant")
PARTS = ("instruction", "context", "response", "category", "client")
"""Of an Instruction, all that it holds."""


@dataclass(frozen=True)
class Instruction:
    """One row.

    context: what the instruction speaks of, or ''.
    category, client: of which kind and whose the row is, where the data say so.
    """

    instruction: str
    context: str
    response: str
    category: str | None = None
    client: str | None = None

    @property
    def question(self) -> str:
        """What is asked, all of it."""
        return f"{self.instruction}\n{self.context}"

    @property
    def is_complete(self) -> bool:
        return bool(self.instruction.strip() and self.response.strip())


@dataclass(frozen=True)
class Template:
    """How a prompt is written, with the fields {instruction} and {context}. The response follows it without a gap."""

    with_context: str
    without_context: str

    def prompt(self, row: Instruction) -> str:
        """What stands before the response of a row."""
        text = self.with_context if row.context else self.without_context
        return text.format(instruction=row.instruction, context=row.context)


# Taori et al., Stanford Alpaca, 2023, with the line break before the response that alpaca-lora gave it
ALPACA = Template(
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{context}\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
)

TEMPLATES = {
    "alpaca": ALPACA,
    # as Stanford Alpaca itself had it
    "alpaca_legacy": Template(ALPACA.with_context.rstrip("\n"), ALPACA.without_context.rstrip("\n")),
    # the headings of Vigogne's French adapters; the sentence before them is our own
    "vigogne": Template(
        "Voici une instruction qui décrit une tâche, et une entrée qui en donne le contexte. Rédigez la réponse.\n\n"
        "### Instruction:\n{instruction}\n\n### Entrée:\n{context}\n\n### Réponse:\n",
        "Voici une instruction qui décrit une tâche. Rédigez la réponse.\n\n"
        "### Instruction:\n{instruction}\n\n### Réponse:\n",
    ),
    "alpaca_short": Template(
        "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n",
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "plain": Template("{instruction}\n\n{context}\n\n", "{instruction}\n\n"),
}
"""data.template -> how a prompt is written."""


@dataclass(frozen=True)
class Instructions:
    """A data set ready to be tokenised.

    categories, clients: those of all splits, sorted; empty where the data name none.
    notes: what was left out of the files, and how they were split, for the report.
    content: whether the rows are those of the data set that the configuration names (privlm.content).
    """

    train: list[Instruction]
    evaluation: dict[str, list[Instruction]]
    template: Template
    categories: tuple[str, ...]
    clients: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str
    content: Content

    def pairs(self, rows: Iterable[Instruction]) -> list[tuple[str, str]]:
        """(prompt, response) of each row."""
        return [(self.template.prompt(row), row.response) for row in rows]


def load_instructions(config: InstructionData, files: DataFiles | None = None) -> Instructions:
    """Reads the data set of `config` from `files` (found by `locate_instructions` if not given).

    One file for all splits is split by the hash of instruction and context: a fifth is the evaluation split, whatever
    else is in the file; or `data.held_out_per_category` rows of each category. Rows without instruction or response are
    left out and counted, unless `data.on_bad_row` says otherwise. `data.max_train_examples` keeps the first of the
    training split.

    Raises:
        UsageError: not at hand, or bad data: names file, line and field, never a text.
    """
    if config.template not in TEMPLATES:
        raise UsageError(f"data.template: '{config.template}' is not one of {', '.join(TEMPLATES)}")
    files = files or locate_instructions(config)
    splits, notes = _split_by_hash(config, files) if files.is_one else _split_by_files(config, files)
    for name, rows in splits.items():
        if not rows:
            raise UsageError("; ".join([f"{files.paths[name][0]}: no rows for the split {name}", *notes]))
    everything = [row for rows in splits.values() for row in rows]
    found = _content_of(config, files, splits)
    notes += content.notes(config, found)
    train = splits.pop(config.train_split)
    limit = config.max_train_examples
    if limit is not None and limit < len(train):
        notes.append(f"trained on the first {limit:,} of {len(train):,} examples (data.max_train_examples)")
        train = train[:limit]
    return Instructions(
        train,
        splits,
        TEMPLATES[config.template],
        _sorted(row.category for row in everything),
        _sorted(row.client for row in everything),
        tuple(notes),
        files.fingerprint,
        found,
    )


def content_of(config: InstructionData) -> Content:
    """What is behind the name of a data configuration; read once in a process as long as the files do not change.

    Raises UsageError as `load_instructions` does.
    """
    files = locate_instructions(config)
    return content.remembered(
        InstructionData, config, files.fingerprint, lambda: load_instructions(config, files).content
    )


def _content_of(config: InstructionData, files: DataFiles, splits: Mapping[str, list[Instruction]]) -> Content:
    """By the rows of all splits, before data.max_train_examples."""
    digests = {
        name: content.digest_of_rows(name, [[getattr(row, part) or "" for row in rows] for part in PARTS])
        for name, rows in splits.items()
    }
    return content.of_splits(config, files.source, digests, files.fingerprint)


Splits = tuple[dict[str, list[Instruction]], list[str]]
"""Split -> its rows, and notes."""


def _split_by_hash(config: InstructionData, files: DataFiles) -> Splits:
    if len(config.eval_splits) != 1:
        raise UsageError("data.eval_splits: one file is split in two by its texts, so name one split for evaluation")
    rows, notes = _read_split(config.train_split, files, config)
    number = config.held_out_per_category
    held_out = _held_out_fifth(rows) if number is None else _held_out_of_categories(rows, number)
    (test,) = config.eval_splits
    how = "a fifth of the rows" if number is None else f"{len(held_out):,} rows, {number} of each category"
    notes.append(f"{test}: {how}, drawn by the hash of instruction and context")
    sides = {config.train_split: [row for place, row in enumerate(rows) if place not in held_out]}
    return sides | {test: [row for place, row in enumerate(rows) if place in held_out]}, notes


def _held_out_fifth(rows: Sequence[Instruction]) -> set[int]:
    return {place for place, row in enumerate(rows) if is_held_out(row.question)}


def _held_out_of_categories(rows: Sequence[Instruction], number: int) -> set[int]:
    """The first `number` of each category by the hash of their questions; a question that comes twice is not one of
    them, so that no question is on both sides.
    """
    times = Counter(row.question for row in rows)
    places = [place for place, row in enumerate(rows) if row.category is not None and times[row.question] == 1]
    if not places:
        raise UsageError("data.held_out_per_category: no row has a category; set it null, which holds out a fifth")
    by_category: dict[str | None, list[int]] = {}
    for place in sorted(places, key=lambda place: digest(rows[place].question)):
        by_category.setdefault(rows[place].category, []).append(place)
    return {place for found in by_category.values() for place in found[:number]}


def _split_by_files(config: InstructionData, files: DataFiles) -> Splits:
    splits: dict[str, list[Instruction]] = {}
    notes: list[str] = []
    for name in files.paths:
        splits[name], found = _read_split(name, files, config)
        notes += [f"{name}: {note}" for note in found]
    if config.held_out_per_category is not None:
        notes.append("data.held_out_per_category: without effect, the files have splits of their own")
    return splits, notes


def _read_split(name: str, files: DataFiles, config: InstructionData) -> tuple[list[Instruction], list[str]]:
    rows: list[Instruction] = []
    num_odd = 0
    for path in files.paths[name]:
        found, odd = _read(path, config)
        rows, num_odd = rows + found, num_odd + odd
    kept = [row for row in rows if row.is_complete]
    counts = {
        "without instruction or response": len(rows) - len(kept),
        "of which a field holds no text": num_odd,
    }
    return kept, [f"{count:,} rows {what} left out" for what, count in counts.items() if count]


# --- one file -------------------------------------------------------------------------------------------------------


def _read(path: Path, config: InstructionData) -> tuple[list[Instruction], int]:
    """The rows of a file, and how many were left out for a field of an odd type: none but with data.on_bad_row=skip."""
    table = read_table(path, encoding=config.encoding, quoting=config.quoting)
    if config.on_bad_row == "skip":
        _rows(_part(table, range(0)), config)  # a column that is missing is missing in all rows
        found = [row for place in range(len(table)) for row in _rows_or_none(_part(table, [place]), config)]
        return found, len(table) - len(found)
    rows = _rows(table, config)
    if config.on_bad_row == "fail":
        _require_complete(rows, table)
    return rows, 0


def _part(table: Table, places: Sequence[int]) -> Table:
    columns = {name: [values[place] for place in places] for name, values in table.columns.items()}
    return replace(table, columns=columns, numbers=[table.numbers[place] for place in places])


def _rows_or_none(table: Table, config: InstructionData) -> list[Instruction]:
    try:
        return _rows(table, config)
    except UsageError:
        return []


def _require_complete(rows: Sequence[Instruction], table: Table) -> None:
    for place, row in enumerate(rows):
        if not row.is_complete:
            raise UsageError(
                f"{table.where(place)}: no instruction, or no response (data.on_bad_row=skip leaves it out)"
            )


def _rows(table: Table, config: InstructionData) -> list[Instruction]:
    groups = (_group(table, field, config) for field in ("category", "client"))
    texts = _conversations(table, config) if _is_chat(table, config) else _columns(table, config)
    return [Instruction(*row) for row in zip(*texts, *groups, strict=True)]


def _is_chat(table: Table, config: InstructionData) -> bool:
    names = {field: names_in_files(field, config.aliases) for field in ("instruction", "messages")}
    return table.name_of(names["instruction"]) is None and table.name_of(names["messages"]) is not None


def _columns(table: Table, config: InstructionData) -> tuple[list[str], list[str], list[str]]:
    """instruction, context, response; a null is an empty text, and the context may be missing altogether."""

    def texts(field: str) -> list[str]:
        return table.texts(names_in_files(field, config.aliases), "data.aliases", null="")

    has_context = table.name_of(names_in_files("context", config.aliases)) is not None
    return texts("instruction"), texts("context") if has_context else [""] * len(table), texts("response")


def _conversations(table: Table, config: InstructionData) -> tuple[list[str], list[str], list[str]]:
    values = table.column(names_in_files("messages", config.aliases), "data.aliases")
    instructions, contexts, responses = [], [], []
    for row, messages in enumerate(values):
        instruction, context, response = _last_turn(messages, table.where(row))
        instructions.append(instruction)
        contexts.append(context)
        responses.append(response)
    return instructions, contexts, responses


def _last_turn(messages: Any, where: str) -> tuple[str, str, str]:
    """The user's last message, what was said before as its context, and the answer: '' where the user speaks last."""
    turns = [(_turn(message, "role"), _turn(message, "content")) for message in messages or []]
    if not all(role in ROLES and is_text(content) for role, content in turns):
        raise UsageError(f"{where}: 'messages' is no list of {{role, content}} with the roles {', '.join(ROLES)}")
    response = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    instruction = turns.pop()[1] if turns and turns[-1][0] == "user" else ""
    said = [content if role == "system" else f"{role.capitalize()}: {content}" for role, content in turns]
    return instruction, "\n\n".join(said), response


def _turn(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, dict) else None


def _group(table: Table, field: str, config: InstructionData) -> list[str | None]:
    """A name or number for each row; None where there is no such column, or nothing in it."""
    name = table.name_of(names_in_files(field, config.aliases))
    values = table.columns[name] if name is not None else [None] * len(table)
    for row, value in enumerate(values):
        if not (value is None or isinstance(value, int) or is_text(value)):
            raise UsageError(f"{table.where(row)}: field '{field}' holds neither text nor a whole number")
    return [None if value in (None, "") else str(value) for value in values]


def _sorted(found: Iterable[str | None]) -> tuple[str, ...]:
    """Without repeats; by their value, where all are numbers."""
    names = {name for name in found if name is not None}
    return tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))
