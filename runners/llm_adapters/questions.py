"""Math questions: fields instruction, input, output and answer, as released; other names by data.aliases.

An answer is a number, or the letter of one of five options that the question lists. GSM8K's own answers (a rationale,
then `#### 42`) and MAWPS' own rows (original_text, equation, ans) are read as they are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from privlm.data.readers import read_table
from privlm.data.table import Table, is_text, names_in_files
from privlm.errors import UsageError

from .extract import LETTERS, whole_number

OPTION_LIST = re.compile(r"answer\s+choices\s*:", re.IGNORECASE)
OPTION = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True)
class Question:
    """One row.

    output: the worked answer to learn, as in the file; where the file has none, the answer in a sentence.
    answer: the label as text. options: the texts of A to E; none where the answer is a number.
    where: file and row, for messages.
    """

    instruction: str
    input: str
    output: str
    answer: str
    options: tuple[str, ...]
    has_rationale: bool
    where: str

    @property
    def text(self) -> str:
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def is_choice(self) -> bool:
        return bool(self.options)

    @property
    def number(self) -> Fraction:
        """The label of a question that asks for a number."""
        value = whole_number(self.answer)
        assert value is not None
        return value

    @property
    def digest(self) -> str:
        """Names the question and its label."""
        return hashlib.sha256(f"{self.text}\n{self.answer}".encode()).hexdigest()[:12]


def read_questions(path: Path, config: Any) -> list[Question]:
    """The rows of a file of any kind that `privlm.data.readers` reads.

    Raises UsageError naming file, row and field: no question, no answer or one that is neither a number nor a letter, a
    letter without its five options, an id that comes twice.
    """
    table = read_table(path, encoding=config.encoding, quoting=config.quoting)
    instructions = table.texts(names_in_files("instruction", config.aliases), "data.aliases", null="")
    answers = table.column(names_in_files("answer", config.aliases), "data.aliases")
    others = [_column(table, field, config) for field in ("input", "output", "equation")]
    _refuse_doubled_ids(table)
    wheres = map(table.where, range(len(table)))
    return [_question(*row) for row in zip(wheres, answers, instructions, *others, strict=True)]


def _column(table: Table, field: str, config: Any) -> list[str]:
    """A column of texts; empty ones where the file has no such column or no value."""
    if table.name_of(names_in_files(field, config.aliases)) is None:
        return [""] * len(table)
    return table.texts(names_in_files(field, config.aliases), "data.aliases", null="")


def _question(where: str, answer: Any, instruction: str, context: str, output: str, equation: str) -> Question:
    if not instruction.strip():
        raise UsageError(f"{where}: no question in field 'instruction'")
    label, rationale = _label(answer, where)
    options = _options(instruction, label, where)
    worked = output if output.strip() else rationale
    text = worked if worked.strip() else _in_a_sentence(label, options, equation)
    return Question(instruction, context, text, label, options, bool(worked.strip()), where)


def _label(answer: Any, where: str) -> tuple[str, str]:
    """The label of a row and the rationale that stands with it, as in GSM8K's own files."""
    text = repr(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not is_text(text) or not text.strip():
        raise UsageError(f"{where}: no answer in field 'answer'")
    rationale, mark, behind = text.rpartition("####")
    label = behind.strip()
    if re.fullmatch(r"\(?[A-Z]\)?", label):
        label = label.strip("()")
    elif whole_number(label) is None:
        raise UsageError(f"{where}: the text in field 'answer' is neither a number nor a letter of {LETTERS}")
    elif not re.fullmatch(r"-?\d+(\.\d+)?", label):
        label = repr(float(whole_number(label) or 0))
    return label, f"{rationale.strip()}\n#### {label}" if mark and rationale.strip() else ""


def _options(instruction: str, label: str, where: str) -> tuple[str, ...]:
    """The five options of a question whose answer is a letter, `Answer Choices: (A) 1 (B) 2 ...`."""
    if not label.isalpha():
        return ()
    if label not in LETTERS:
        raise UsageError(f"{where}: the letter in field 'answer' is none of {', '.join(LETTERS)}")
    if not (options := listed_options(instruction)):
        raise UsageError(
            f"{where}: field 'instruction' does not list five options, (A) to (E) behind 'Answer Choices:', which an "
            "answer that is a letter needs"
        )
    return options


def listed_options(instruction: str) -> tuple[str, ...]:
    """The texts of the five options that a question lists; none where it lists no five."""
    found = OPTION_LIST.search(instruction)
    parts = OPTION.split(instruction[found.end() :]) if found else []
    return tuple(text.strip() for text in parts[2::2]) if "".join(parts[1::2]) == LETTERS else ()


def _in_a_sentence(label: str, options: tuple[str, ...], equation: str) -> str:
    """What is learnt where the file has no worked answer: MAWPS' equation, if there is one, and the answer."""
    if options:
        return f"The answer is ({label})."
    said = f"The answer is {label.removesuffix('.0')}."
    sides = equation.split("=", maxsplit=1)
    return f"{sides[1].strip()} = {label.removesuffix('.0')}. {said}" if len(sides) == 2 else said


def _refuse_doubled_ids(table: Table) -> None:
    seen: dict[str, int] = {}
    for row, name in enumerate(table.columns.get("id", ())):
        if name is None or name == "":
            continue
        first = seen.setdefault(repr(name), row)
        if first != row:
            raise UsageError(f"{table.where(row)}: field 'id' is that of {table.unit} {table.numbers[first]}, too")
