"""Questions, their answers and their backgrounds: our JSON lines, and the files of FM2 as released.

    {"id": "7", "question": "Which vitamin ...?", "answer": "B", "options": ["A", "C", "D"], "background": "...",
     "context": "...", "passages": ["..."], "group": "page or topic", "image": "7.png"}

id, question and answer are needed; without a background a row is not learnt. The answer of a claim is true or false,
with options it is one of them, else a text or a list of texts that all count. Other names by data.aliases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm.data.readers import read_table
from privlm.data.table import Table, is_text, names_in_files
from privlm.errors import UsageError

LETTERS = "ABCDEFGHIJ"
CLAIMS = {"supports": "true", "refutes": "false", "true": "true", "false": "false"}
"""Label of a claim in lower case -> its answer."""


@dataclass(frozen=True)
class Question:
    """One row.

    answers: what counts as right: true or false of a claim, the letter of an option, texts otherwise.
    options: their texts, which the letters A, B, ... name; none where the answer is no choice.
    background: what a guide is to write, or ''. passages: of its own retrieval list.
    group: what it shares with others (a page), or its own id. image: a path, or ''.
    where: file and row, for messages.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    background: str
    context: str
    passages: tuple[str, ...]
    group: str
    image: str
    is_claim: bool
    where: str

    @property
    def digest(self) -> str:
        """Names the question and what counts as right."""
        return hashlib.sha256(repr((self.question, self.answers, self.options)).encode()).hexdigest()[:12]

    @property
    def asked(self) -> str:
        """All that is asked: context, question, options."""
        return "\n".join(filter(None, [self.context, self.question, listed(self.options)]))


def listed(options: tuple[str, ...]) -> str:
    """(A) red (B) green; empty without options."""
    return " ".join(f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))


def read_questions(path: Path, config: Any) -> list[Question]:
    """The rows of a file of any kind that `privlm.data.readers` reads. config: a data configuration.

    Raises UsageError naming file, row and field: no question, no answer or one that cannot be, an id that comes twice.
    """
    table = read_table(path, encoding=config.encoding, quoting=config.quoting)
    read = _fm2_row if config.kind == "claim" and "gold_evidence" in table.columns else _row
    fields = {field: _column(table, field, config) for field in FIELDS} if read is _row else dict(table.columns)
    rows = []
    first: dict[str, str] = {}
    for number in range(len(table)):
        question = read({name: values[number] for name, values in fields.items()}, table.where(number), config.kind)
        if question.id in first:
            raise UsageError(f"{question.where}: field 'id' is that of {first[question.id]}, too")
        first[question.id] = question.where
        rows.append(question)
    return rows


FIELDS = ("id", "question", "answer", "options", "background", "context", "passages", "group", "image")
NEEDED = ("id", "question", "answer")


def _column(table: Table, field: str, config: Any) -> list[Any]:
    names = names_in_files(field, config.aliases)
    if field in NEEDED or table.name_of(names) is not None:
        return table.column(names, "data.aliases")
    return [None] * len(table)


def _row(row: dict[str, Any], where: str, kind: str) -> Question:
    """A row of our own layout."""
    id_ = str(row["id"]) if isinstance(row["id"], int) else _text(row, "id", where)
    question = _text(row, "question", where)
    options = _texts(row, "options", where)
    if options and not 2 <= len(options) <= len(LETTERS):
        raise UsageError(f"{where}: field 'options' has {len(options)} texts; a choice has 2 to {len(LETTERS)}")
    return Question(
        id=id_,
        question=question,
        answers=_claim(row["answer"], "answer", where) if kind == "claim" else _answers(row, options, where),
        options=options,
        background=_text(row, "background", where, empty=""),
        context=_text(row, "context", where, empty=""),
        passages=_texts(row, "passages", where),
        group=_text(row, "group", where, empty=id_),
        image=_text(row, "image", where, empty=""),
        is_claim=kind == "claim",
        where=where,
    )


def _fm2_row(row: dict[str, Any], where: str, kind: str) -> Question:
    """A row as Fool Me Twice was released (Eisenschlos et al., NAACL 2021)."""
    id_ = _text(row, "id", where)
    return Question(
        id=id_,
        question=_text(row, "text", where),
        answers=_claim(row.get("label"), "label", where),
        options=(),
        background=" ".join(_sentences(row, "gold_evidence", where)),
        context="",
        passages=tuple(_sentences(row, "retrieved_evidence", where)),
        group=_text(row, "wikipedia_page", where, empty=id_),
        image="",
        is_claim=True,
        where=where,
    )


def _sentences(row: dict[str, Any], field: str, where: str) -> list[str]:
    entries = row.get(field) or []
    if not isinstance(entries, list):
        raise UsageError(f"{where}: field '{field}' is no list of {{section_header, text}}")
    texts = [entry.get("text") if isinstance(entry, dict) else None for entry in entries]
    if not all(map(is_text, texts)):
        raise UsageError(f"{where}: field '{field}' is no list of {{section_header, text}}")
    return [str(text).strip() for text in texts]


def _claim(label: Any, field: str, where: str) -> tuple[str, ...]:
    label = str(label).lower() if isinstance(label, bool | str) else ""
    if label not in CLAIMS:
        raise UsageError(f"{where}: field '{field}' of a claim is none of SUPPORTS, REFUTES, true, false")
    return (CLAIMS[label],)


def _answers(row: dict[str, Any], options: tuple[str, ...], where: str) -> tuple[str, ...]:
    given = row["answer"]
    answers = [str(given)] if isinstance(given, int | float | bool) else given
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(is_text(one) and one.strip() for one in answers):
        raise UsageError(f"{where}: no answer in field 'answer': it is a text, or a list of texts")
    return tuple(_letter(one.strip(), options, where) for one in answers) if options else tuple(answers)


def _letter(answer: str, options: tuple[str, ...], where: str) -> str:
    """The letter of the option that an answer names, by its letter or its text."""
    known = LETTERS[: len(options)]
    if options.count(answer) == 1:
        return known[options.index(answer)]
    if len(answer) == 1 and answer in known:
        return answer
    raise UsageError(f"{where}: field 'answer' is neither one of its options nor a letter from A to {known[-1]}")


def _text(row: dict[str, Any], field: str, where: str, *, empty: str | None = None) -> str:
    """empty: what stands for a missing or blank text, where it may be missing."""
    value = row.get(field)
    if value is None or value == "" or (is_text(value) and not value.strip()):
        if empty is None:
            raise UsageError(f"{where}: no text in field '{field}'")
        return empty
    if not is_text(value):
        raise UsageError(f"{where}: no text in field '{field}'")
    return value.strip()


def _texts(row: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    values = row.get(field)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(is_text(value) and value.strip() for value in values):
        raise UsageError(f"{where}: field '{field}' is no list of texts")
    return tuple(value.strip() for value in values)
