"""The data of a run: questions to learn backgrounds from, questions to answer, passages to search.

A folder with a file a split, one file of somebody's own, of which a fifth is answered, or the embedded extract of FM2.
No evaluation set that others rely on (StrategyQA, CRASS, BIG-bench) may be learnt from, and no test item.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from privlm import content
from privlm.content import Content
from privlm.data.contamination import Overlap, normalised, overlap
from privlm.data.held_out import is_held_out
from privlm.data.locate import FORMS, DataFiles, is_saved, one_file, split_files
from privlm.errors import UsageError

from .config import GuidedQuestions
from .questions import Question, read_questions

EMBEDDED = Path(__file__).parent / "embedded"
BENCHMARKS = EMBEDDED / "benchmarks.txt"
"""Of each question that must not be learnt, 12 hexadecimal digits of the sha256 of its letters and digits."""


@dataclass(frozen=True)
class Leak:
    """What test questions share with the alignment set: whole questions, the page (group), 13 words in a row."""

    exact: int
    group: int
    gram: int
    num_test: int


@dataclass(frozen=True)
class Questions:
    """train: all have a background. marks: words that every reader of the results must see: leaking, subset."""

    train: list[Question]
    test: list[Question]
    leak: Leak
    notes: tuple[str, ...]
    marks: tuple[str, ...]
    content: Content

    @cached_property
    def passages(self) -> list[str]:
        """The global pool: the distinct backgrounds of both splits, in their order."""
        texts = (row.background for row in (*self.train, *self.test))
        return list(dict.fromkeys(filter(None, texts)))


def locate(config: Any) -> DataFiles:
    """Finds the files. Raises UsageError for what is not at hand: how to obtain it."""
    if not hasattr(config, "kind") or not hasattr(config, "test_split"):
        raise UsageError(f"data: '{config.name}' is data of another kind; this task takes data=fm2_mini")
    splits = (config.train_split, config.test_split)
    if not config.path:
        if config.embedded:
            return split_files(EMBEDDED, splits)
        raise UsageError(f"data '{config.name}' is not found: {config.obtain}")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise UsageError(f"data.path: there is neither a file nor a folder {path} ({FORMS}); {config.obtain}")
    return one_file(path, splits) if path.is_file() or is_saved(path) else split_files(path, splits)


def image_folder(config: Any) -> Path:
    """What the field image is relative to."""
    path = Path(config.path).expanduser() if config.path else EMBEDDED
    return path.parent if path.is_file() else path


def content_of(config: Any) -> Content:
    """What is behind the name of the data; reads them once in a process. Raises UsageError as `load`."""
    return content.remembered(GuidedQuestions, config, locate(config).fingerprint, lambda: load(config).content)


def load(config: Any) -> Questions:
    """Reads, splits and compares.

    Raises UsageError for bad rows (file, row, field), for a benchmark among what is learnt, and for test items in the
    alignment set, unless data.allow_leak says that this is meant.
    """
    files = locate(config)
    train, test = _splits(config, files)
    digests = {name: _digest(name, rows) for name, rows in ((config.train_split, train), (config.test_split, test))}
    found = content.of_splits(config, files.source, digests, files.fingerprint)
    notes, marks = content.notes(config, found), []
    if files.is_one:
        notes.append("one file: a fifth of its groups, drawn by their hash, is answered, the rest is learnt")
    learnt = [row for row in train if row.background]
    if len(learnt) < len(train):
        notes.append(f"{len(train) - len(learnt):,} of {len(train):,} rows to learn from have no background: left out")
    if (limit := config.max_train_examples) is not None and limit < len(learnt):
        notes.append(f"learnt from the first {limit:,} of {len(learnt):,} rows (data.max_train_examples)")
        learnt = learnt[:limit]
    if (limit := config.num_test_questions) is not None and limit < len(test):
        test = test[:limit]
        marks.append("subset")
    if not learnt or not test:
        raise UsageError(f"{files.source}: {len(learnt)} rows to learn from and {len(test)} to answer are too few")
    _refuse_benchmarks(learnt)
    leak = compare(learnt, test)
    if leak.exact or leak.group:
        _refuse_leak(config, leak)
        marks.append("leaking")
    notes.append(_in_words(leak, len(learnt)))
    return Questions(learnt, test, leak, tuple(notes), tuple(marks), found)


def _digest(split: str, rows: Sequence[Question]) -> str:
    texts = ("id", "question", "background", "context", "group")
    lists = ("answers", "options", "passages")
    columns = [[getattr(row, part) for row in rows] for part in texts]
    return content.digest_of_rows(split, columns + [[repr(getattr(row, part)) for row in rows] for part in lists])


def _splits(config: Any, files: DataFiles) -> tuple[list[Question], list[Question]]:
    if not files.is_one:
        (train,), (test,) = files.paths[config.train_split], files.paths[config.test_split]
        return read_questions(train, config), read_questions(test, config)
    (path,) = files.paths[config.train_split]
    rows = read_questions(path, config)
    sides: tuple[list[Question], list[Question]] = ([], [])
    for row in rows:  # of equal questions or one group all are on one side
        sides[is_held_out(normalised(row.question) if row.group == row.id else row.group)].append(row)
    return sides


def compare(train: Sequence[Question], test: Sequence[Question]) -> Leak:
    """How many test items the alignment set has too."""
    shared: Overlap = overlap([row.question for row in train], [row.question for row in test])
    groups = {row.group for row in train if row.group != row.id}
    same_group = sum(row.group in groups for row in test)
    return Leak(shared.exact_test, same_group, shared.gram_test, len(test))


def _refuse_leak(config: Any, leak: Leak) -> None:
    if not config.allow_leak:
        raise UsageError(
            f"data.allow_leak: of {leak.num_test:,} test items {leak.exact:,} have a question, and {leak.group:,} a "
            "page or group, that the alignment set has too, which makes their accuracy worthless; take them out, or "
            "set data.allow_leak=true, which marks the run as leaking"
        )


def _in_words(leak: Leak, num_train: int) -> str:
    if not (leak.exact or leak.group or leak.gram):
        return (
            f"contamination: no test item shares question, page or 13 words with the {num_train:,} rows to learn from"
        )
    return (
        f"contamination: of {leak.num_test:,} test items {leak.exact:,} share the question, {leak.group:,} the page or "
        f"group, {leak.gram:,} 13 words of the question with the {num_train:,} rows to learn from"
    )


@cache
def _benchmarks() -> frozenset[str]:
    return frozenset(BENCHMARKS.read_text(encoding="ascii").split())


def _refuse_benchmarks(train: Sequence[Question]) -> None:
    for row in train:
        for text in (row.question, f"{row.context} {row.question}"):
            key = re.sub(r"[^a-z0-9]", "", text.lower())  # as the file has it, whose questions are English
            if hashlib.sha256(key.encode()).hexdigest()[:12] in _benchmarks():
                raise UsageError(
                    f"{row.where}: field 'question' is one of StrategyQA, CRASS or BIG-bench, which test other tasks: "
                    "a guide must not learn from it"
                )
