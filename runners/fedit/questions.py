"""Questions of nobody that a judge compares answers to: FastChat's files (Vicuna, MT-Bench: their first turn), files
with a column instruction or question, and a few of our own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm.data.readers import read_table
from privlm.data.table import Table, is_text
from privlm.errors import UsageError
from privlm.files import sha256_file

from .config import EMBEDDED

OWN = Path(__file__).parent / "embedded" / "questions.jsonl"
NAMES = ("instruction", "question", "prompt", "text")
"""Columns of a question, beside FastChat's `turns`."""


@dataclass(frozen=True)
class Question:
    """where: file and row, for messages."""

    text: str
    where: str

    @property
    def item(self) -> str:
        """Its name in files of answers and verdicts; another question has another one."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Questions:
    questions: list[Question]
    fingerprint: str


def read_questions(name: str) -> Questions:
    """name: a file, or `embedded`. Raises UsageError naming file and row: no text, or a question that comes twice."""
    path = OWN if name == EMBEDDED else Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"task.questions: no file {path}; give a .jsonl of questions, or {EMBEDDED}")
    table = read_table(path)
    questions = [Question(_text(table, row), table.where(row)) for row in range(len(table))]
    seen: dict[str, str] = {}
    for question in questions:
        if (first := seen.setdefault(question.item, question.where)) != question.where:
            raise UsageError(f"{question.where}: the question of {first}, once more")
    if not questions:
        raise UsageError(f"task.questions: {path} holds no question")
    return Questions(questions, f"sha256:{sha256_file(path)}")


def _text(table: Table, row: int) -> str:
    turns = table.columns.get("turns")
    value: Any = _first(turns[row]) if turns else table.column(NAMES, "task.questions")[row]
    if not is_text(value) or not value.strip():
        raise UsageError(f"{table.where(row)}: no text of a question, in a field turns, {', '.join(NAMES)}")
    return str(value).strip()


def _first(turns: Any) -> Any:
    return turns[0] if isinstance(turns, list) and turns else None
