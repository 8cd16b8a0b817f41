"""StrategyQA: yes/no questions whose answer needs several facts (Geva et al., TACL 2021), and the paragraphs that are
searched for them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import content, hub
from privlm.content import Content
from privlm.data.readers import read_table
from privlm.errors import UsageError
from privlm.files import sha256_file

EMBEDDED = Path(__file__).parent / "embedded"
FILES = ("train.json", "dev.json")


@dataclass(frozen=True)
class Paragraph:
    """id: the question it belongs to and its number there, or the data set's own id."""

    id: str
    text: str


@dataclass(frozen=True)
class Question:
    """paragraphs: the true ones, which support the answer."""

    id: str
    text: str
    answer: bool
    paragraphs: tuple[Paragraph, ...]


@dataclass(frozen=True)
class Located:
    """files: those of the split first; the others only add paragraphs to the pool."""

    files: tuple[Path, ...]
    fingerprint: str


@dataclass(frozen=True)
class Dataset:
    """questions: of the subset, in the order of the file. pool: the paragraphs of all questions, and no other.

    num_cut: paragraphs that were longer than data.max_paragraph_chars.
    """

    questions: list[Question]
    pool: list[Paragraph]
    num_cut: int


def locate(config: Any) -> Located:
    """Finds the files: `data.path`, else the embedded questions, else the hub or its cache. No torch.

    Raises UsageError for files that are not at hand.
    """
    if config.path or config.embedded:
        folder = Path(config.path).expanduser() if config.path else EMBEDDED
        wanted = f"{config.split}.json"
        if not (folder / wanted).is_file():
            raise UsageError(f"data.path: no file {wanted} in {folder} (data.split={config.split}); give its folder")
        names = [wanted, *(name for name in FILES if name != wanted and (folder / name).is_file())]
        paths = tuple(folder / name for name in names)
        return Located(paths, hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest())
    pattern = f"data/{config.split}-*.parquet"

    def is_complete(folder: Path) -> bool:
        return any(folder.glob(pattern))

    try:
        folder = hub.find_snapshot(config.hub_id, "dataset", is_complete)
    except hub.NotAtHandError as reason:
        raise UsageError(
            f"data '{config.name}' ({config.hub_id}) is not at hand: not in the hub cache, and {reason}; give "
            "data.path=FOLDER holding train.json and dev.json, or data=strategyqa_mini, which is embedded"
        ) from None
    if not is_complete(folder):
        hub.download(folder, config.hub_id, "dataset", [pattern])
    if not is_complete(folder):
        raise UsageError(f"data.hub_id: {config.hub_id} has no files {pattern} (data.split={config.split})")
    return Located(tuple(sorted(folder.glob(pattern))), f"hub:{config.hub_id}@{folder.name}")


def content_of(config: Any) -> Content:
    """Whether the questions are the published ones: by the records of all files, since each adds to the pool."""
    located = locate(config)
    records = [[json.dumps(record, sort_keys=True, default=str) for record in _read(path)] for path in located.files]
    if config.path or config.embedded:
        source = content.source_name(config.path or EMBEDDED)
    else:
        source = content.repository_name(config.hub_id)
    digests = {config.split: content.digest_of_rows(config.split, records)}
    return content.of_splits(config, source, digests, located.fingerprint)


def load(config: Any, num_questions: int | None = None) -> Dataset:
    """The first `num_questions` questions of the subset and the pool of paragraphs.

    Raises UsageError, naming file and question, for a question without answer, facts or a known paragraph, and for an
    id that comes twice.
    """
    located = locate(config)
    texts = None if config.paragraphs is None else _read_paragraphs(Path(config.paragraphs).expanduser())
    questions: list[Question] = []
    pool: dict[str, Paragraph] = {}
    seen: set[str] = set()
    num_cut = 0
    for path in located.files:
        of_split = path.suffix == ".parquet" or path == located.files[0]
        for number, record in enumerate(_read(path), start=1):
            where = f"{path} question {number}"
            identity = _field(record, "qid", str, where)
            if identity in seen:
                raise UsageError(f"{where}: qid {identity} comes twice")
            seen.add(identity)
            wanted = of_split and (num_questions is None or len(questions) < num_questions)
            wanted = wanted and _in_subset(record, config.subset, where)
            found = _paragraphs(record, identity, texts, where)
            num_cut += sum(len(text) > config.max_paragraph_chars for _, text in found)
            paragraphs = tuple(Paragraph(name, text[: config.max_paragraph_chars]) for name, text in found)
            pool |= {paragraph.id: paragraph for paragraph in paragraphs}
            if wanted:
                if not paragraphs:
                    raise UsageError(f"{where} (qid {identity}): no facts to answer it from; leave it out")
                text = _field(record, "question", str, where)
                answer = _field(record, "answer", bool, where)
                questions.append(Question(identity, text.strip(), answer, paragraphs))
    if not questions:
        raise UsageError(f"{located.files[0]}: no question is in data.subset={config.subset}")
    return Dataset(questions, list(pool.values()), num_cut)


# --- records --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(read_table(path).rows())
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise UsageError(f"{path}: a list of questions, each an object, is expected")
    return content


def _field(record: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(record.get(name), kind):
        hint = "; questions of the hidden test set have none" if name == "answer" else ""
        raise UsageError(f"{where}: no field {name} that is a {kind.__name__}{hint}")
    return record[name]


def _in_subset(record: dict[str, Any], subset: str, where: str) -> bool:
    """Whether the annotators (all, or any of them) support each step by a paragraph or mark it as an operation."""
    if subset == "all":
        return True
    evidence = record.get("evidence")
    if not isinstance(evidence, list):
        raise UsageError(f"{where}: no field evidence, which data.subset={subset} needs; use data.subset=all")
    votes = [_supports_all(annotator) for annotator in evidence]
    return bool(votes) and (all(votes) if subset == "all_annotators" else any(votes))


def _supports_all(annotator: Any) -> bool:
    """An annotator without steps supports nothing."""
    return bool(annotator) and all(
        "no_evidence" not in step and any(part == "operation" or (isinstance(part, list) and part) for part in step)
        for step in annotator
    )


def _paragraphs(
    record: dict[str, Any], identity: str, texts: dict[str, str] | None, where: str
) -> list[tuple[str, str]]:
    """(id, text) of the true paragraphs: the evidence of all annotators, where its texts are given, else the facts."""
    if texts is None:
        facts = record.get("facts") or []
        if isinstance(facts, str):  # as on the hub
            facts = re.split(r"(?<=[.!?])\s+", facts.strip())
        return [(f"{identity}-{number}", fact) for number, fact in enumerate(facts, start=1) if fact.strip()]
    steps = (step for annotator in record.get("evidence") or [] for step in annotator)
    names = [name for step in steps for part in step if isinstance(part, list) for name in part]
    for name in names:
        if name not in texts:
            raise UsageError(f"{where}: paragraph '{name}' is not in data.paragraphs")
    return [(name, texts[name]) for name in dict.fromkeys(names)]


def _read_paragraphs(path: Path) -> dict[str, str]:
    """id -> text, or id -> {content: text} as in the released file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: value["content"] if isinstance(value, dict) else str(value) for name, value in content.items()}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError) as error:
        raise UsageError(f"data.paragraphs: {path} is not a JSON object of paragraph id -> text ({error})") from None
