"""The data of a run: questions to learn from, rows held out of them, and test sets that must not repeat them.

Three layouts: the embedded extract; a folder as released, `<set>/test.json` beside the training file; one file of
somebody's own, of which a fifth is the test set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import content
from privlm.content import Content
from privlm.data.contamination import Overlap, normalised, overlap
from privlm.data.held_out import is_held_out
from privlm.data.locate import ENDINGS, FORMS
from privlm.errors import UsageError
from privlm.files import sha256_file

from .config import MathDataConfig
from .questions import Question, read_questions

EMBEDDED = Path(__file__).parent / "embedded"
TEST_FOLDERS, TRAIN_FOLDERS = (".", "dataset"), (".", "ft-training_set", "dataset")
"""Below data.path: of the sets alone, and of a checkout of the authors' repository."""
OWN_TEST = "held_out_fifth"
"""The test set of one file of somebody's own."""


@dataclass(frozen=True)
class Located:
    """tests: set -> its file; none where the training file is the only one. source: name of folder or file."""

    train: Path
    tests: dict[str, Path]
    fingerprint: str
    source: str


@dataclass(frozen=True)
class MathData:
    """held_out: rows of the training data that are not learnt. overlaps: set -> what it shares with `train`.

    marks: words that every reader of the results must see: leaking, subset.
    """

    train: list[Question]
    held_out: list[Question]
    tests: dict[str, list[Question]]
    overlaps: dict[str, Overlap]
    notes: tuple[str, ...]
    marks: tuple[str, ...]
    content: Content


def locate(config: Any) -> Located:
    """Finds the files. Raises UsageError for what is not at hand, all files in one message."""
    if not hasattr(config, "test_sets"):
        raise UsageError(f"data: '{config.name}' is data of another kind; this task takes data=llm_adapters_mini")
    if not (config.path or config.embedded):
        raise UsageError(
            f"data.path: name the folder of the sets of data '{config.name}', data.path=FOLDER, or a file of your own "
            "questions; data=llm_adapters_mini is embedded"
        )
    root = Path(config.path).expanduser() if config.path else EMBEDDED
    own = Path(config.train_path).expanduser() if config.train_path else None
    if own is not None and not own.is_file():
        raise UsageError(f"data.train_path: no file {own} ({FORMS})")
    if root.is_file():
        if own is not None:
            raise UsageError(
                "data.path is one file, of which a fifth is the test set, so that data.train_path has no part in it: "
                "give one of the two (with data.train_path alone, the embedded sets are the tests)"
            )
        return Located(root, {}, f"sha256:{sha256_file(root)}", content.source_name(root))
    if not root.exists():
        raise UsageError(f"data.path: there is neither a file nor a folder {root}")
    tests = {name: _find(root, TEST_FOLDERS, f"{name}/test") for name in config.test_sets}
    train = own or _find(root, TRAIN_FOLDERS, config.train_file)
    absent = [f"{name}/test.json" for name, path in tests.items() if path is None]
    if train is None:
        absent.append(f"{config.train_file}.json (data.train_file; or name a file by data.train_path)")
    if train is None or absent:
        raise UsageError(f"data.path: {root} has no {', no '.join(absent)}")
    found = {name: path for name, path in tests.items() if path is not None}
    digests = "".join(map(sha256_file, (train, *found.values())))
    source = content.source_name(config.train_path or root)
    return Located(train, found, f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}", source)


def content_of(config: Any) -> Content:
    """What is behind the name of the data; reads them once in a process. Raises UsageError as `load`."""
    return content.remembered(MathDataConfig, config, locate(config).fingerprint, lambda: load(config).content)


def load(config: Any) -> MathData:
    """Reads, splits and compares.

    Raises UsageError for bad rows (file, row, field), and for test questions that are in the training data, unless
    data.allow_leak says that this is meant.
    """
    located = locate(config)
    rows = read_questions(located.train, config)
    tests = {name: read_questions(path, config) for name, path in located.tests.items()}
    found = _content_of(config, located, rows, tests)
    notes = content.notes(config, found)
    if not tests:
        rows, tests = _fifth_apart(rows)
        notes.append(f"{OWN_TEST}: a fifth of the questions, drawn by their hash; data.test_sets has no part in it")
    elif config.split == "v1_80_20":
        tests, removed = _without(tests, rows)
        if removed:
            notes.append(f"split v1_80_20: left out of the test sets, since the training file has them: {removed}")
    train, held_out = _held_out(rows, config.num_held_out)
    if (limit := config.max_train_examples) is not None and limit < len(train):
        notes.append(f"trained on the first {limit:,} of {len(train):,} rows (data.max_train_examples)")
        train = train[:limit]
    marks = []
    if (limit := config.num_test_questions) is not None and any(len(test) > limit for test in tests.values()):
        tests = {name: test[:limit] for name, test in tests.items()}
        marks.append("subset")
    if empty := [name for name, test in tests.items() if not test]:
        raise UsageError(f"data: no test question is left in {', '.join(empty)}; data.split={config.split}")
    texts = [question.text for question in train]
    overlaps = {name: overlap(texts, [question.text for question in test]) for name, test in tests.items()}
    if leaks := {name: shared for name, shared in overlaps.items() if shared.exact_test}:
        _refuse_leak(config, leaks)
        marks.append("leaking")
    if without := sum(not question.has_rationale for question in train):
        notes.append(f"{without:,} of {len(train):,} training rows have no worked answer: they learn the answer alone")
    notes += [_in_words(name, shared) for name, shared in overlaps.items() if shared.exact_test or shared.gram_test]
    if clean := [name for name, shared in overlaps.items() if not (shared.exact_test or shared.gram_test)]:
        notes.append(
            f"contamination of {', '.join(clean)}: no test question, nor 13 words of one, in the training data"
        )
    return MathData(train, held_out, tests, overlaps, tuple(notes), tuple(marks), found)


def _find(root: Path, folders: tuple[str, ...], name: str) -> Path | None:
    paths = (root / folder / f"{name}{ending}" for folder in folders for ending in (".json", *ENDINGS))
    return next((path for path in paths if path.is_file()), None)


def _content_of(config: Any, located: Located, train: list[Question], tests: dict[str, list[Question]]) -> Content:
    """By the rows of whole files, whatever is held out of them."""

    def digest(split: str, rows: list[Question]) -> str:
        columns = [[getattr(row, part) for row in rows] for part in ("instruction", "input", "output", "answer")]
        return content.digest_of_rows(split, columns)

    digests = {name: digest(name, rows) for name, rows in {"train": train, **tests}.items()}
    return content.of_splits(config, located.source, digests, located.fingerprint)


# --- splits ---------------------------------------------------------------------------------------------------------


def _fifth_apart(rows: list[Question]) -> tuple[list[Question], dict[str, list[Question]]]:
    """Equal questions are on one side."""
    train = [row for row in rows if not is_held_out(normalised(row.text))]
    test = [row for row in rows if is_held_out(normalised(row.text))]
    if not train or not test:
        raise UsageError(f"data.path: {len(rows)} questions are too few to hold a fifth of them out as the test set")
    return train, {OWN_TEST: test}


def _without(tests: dict[str, list[Question]], train: list[Question]) -> tuple[dict[str, list[Question]], str]:
    """Each set without the questions that the training file has, which are the other 80 %."""
    learnt = {normalised(row.text) for row in train}
    kept = {name: [row for row in rows if normalised(row.text) not in learnt] for name, rows in tests.items()}
    removed = {name: len(tests[name]) - len(kept[name]) for name in tests}
    return kept, ", ".join(f"{name} {num:,} of {len(tests[name]):,}" for name, num in removed.items() if num)


def _held_out(rows: list[Question], num_rows: int) -> tuple[list[Question], list[Question]]:
    """`num_rows` rows, those of the questions with the smallest hashes: a row more in the file moves at most one."""

    def key(row: Question) -> str:
        return hashlib.sha256(normalised(row.text).encode()).hexdigest()

    if not num_rows:
        return rows, []
    if num_rows >= len(rows):
        raise UsageError(f"data.num_held_out={num_rows} leaves none of {len(rows)} rows to learn from: lower it")
    last = sorted(map(key, rows))[num_rows - 1]
    held_out = [row for row in rows if key(row) <= last]
    train = [row for row in rows if key(row) > last]
    if not train:
        raise UsageError("data.num_held_out: all rows ask the same question, so none can be held out: set it to 0")
    return train, held_out


# --- leaks ----------------------------------------------------------------------------------------------------------


def _refuse_leak(config: Any, leaks: dict[str, Overlap]) -> None:
    if config.allow_leak:
        return
    found = ", ".join(f"{name} {shared.exact_test:,} of {shared.num_test:,}" for name, shared in leaks.items())
    raise UsageError(
        f"data.allow_leak: test questions stand in the training data ({found}), which makes their accuracy worthless; "
        "data.split=v1_80_20 leaves them out, data.allow_leak=true measures them nevertheless, marked as leaking"
    )


def _in_words(name: str, shared: Overlap) -> str:
    return (
        f"contamination of {name}: {shared.exact_test:,} of {shared.num_test:,} test questions are in the training "
        f"data word for word, {shared.gram_test:,} share 13 words in a row with it; of {shared.num_train:,} training "
        f"rows {shared.exact_train:,} and {shared.gram_train:,} are such"
    )
