"""Labelled texts in the formats `sms` (one collection of messages) and `glue` (a file per split, one text or two)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privlm import content
from privlm.content import Content
from privlm.data.held_out import is_held_out
from privlm.data.locate import DataFiles, locate
from privlm.data.readers import read_table
from privlm.data.schema import DataConfig
from privlm.data.table import Table, names_in_files
from privlm.errors import UsageError

SMS_FIELDS = ("label", "text")


@dataclass(frozen=True)
class Split:
    """N labelled examples.

    texts: one or two columns (sentence pairs) of N texts each.
    labels: class ids, int64 [N].
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> Split:
        """The examples at `indices`, in that order."""
        rows = list(indices)
        return Split(tuple([column[i] for i in rows] for column in self.texts), self.labels[rows])


@dataclass(frozen=True)
class TextClassification:
    """A data set ready to be tokenised.

    labels: class names in the order of their ids.
    notes: what was left out of the files, for the report.
    content: whether the rows are those of the data set that the configuration names (privlm.content).
    is_subset: they are, and a split has fewer of them than the data set has (data.split_sizes).
    """

    train: Split
    evaluation: dict[str, Split]
    labels: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]
    content: Content
    is_subset: bool = False


def load(config: DataConfig, files: DataFiles | None = None) -> TextClassification:
    """Reads the data set of `config` from `files` (found by `locate` if not given).

    `data.max_train_examples` keeps the first examples of the training split.

    Raises:
        UsageError: not at hand, or bad data: names file, line and field, never a text.
    """
    files = files or locate(config)
    splits, notes = FORMATS[config.format](config, files)
    found = _content_of(config, files, splits)
    notes += content.notes(config, found)
    train = splits.pop(config.train_split)
    limit = config.max_train_examples
    if limit is not None and limit < len(train):
        notes.append(f"trained on the first {limit:,} of {len(train):,} examples (data.max_train_examples)")
        train = train.take(range(limit))
    incomplete = [
        f"{name} {len(split):,} of {config.split_sizes[name]:,}"
        for name, split in {config.train_split: train, **splits}.items()
        if len(split) < config.split_sizes.get(name, 0)
    ]
    is_subset = found.known and bool(incomplete)
    if is_subset:
        notes.append(f"subset of {config.name}: {', '.join(incomplete)} examples")
    return TextClassification(
        train, splits, tuple(config.labels), files.fingerprint, tuple(notes), found, is_subset=is_subset
    )


def marks(data: TextClassification, config: DataConfig, pretrained_on: Sequence[str]) -> list[str]:
    """What the reader of an accuracy must know: `own data`, else `subset`, `public-overlap`, both or nothing.

    pretrained_on: public corpora that the model has seen. Whether own data are among them is not known.
    """
    if not data.content.known:
        return [content.OWN["data"]]
    overlaps = bool(set(pretrained_on) & set(config.public_overlap))
    return ["subset"] * data.is_subset + ["public-overlap"] * overlaps


def content_of(config: DataConfig) -> Content:
    """What is behind the name of a data configuration; read once in a process as long as the files do not change.

    Raises UsageError as `load` does.
    """
    files = locate(config)
    return content.remembered(DataConfig, config, files.fingerprint, lambda: load(config, files).content)


def _content_of(config: DataConfig, files: DataFiles, splits: Mapping[str, Split]) -> Content:
    """By the rows of all splits, before data.max_train_examples; a label is its name."""
    labels = list(config.labels)
    digests = {
        name: content.digest_of_rows(name, [*split.texts, [labels[label] for label in split.labels]])
        for name, split in splits.items()
    }
    return content.of_splits(config, files.source, digests, files.fingerprint)


def _read_glue(config: DataConfig, files: DataFiles) -> tuple[dict[str, Split], list[str]]:
    return {split: _read_split(paths, config) for split, paths in files.paths.items()}, []


def _read_sms(config: DataConfig, files: DataFiles) -> tuple[dict[str, Split], list[str]]:
    """Keeps the first of equal texts, so that one person's message counts once, and splits by the text's hash.

    Both are stable: one message more changes no other message's place.
    """
    if (config.train_split, *config.eval_splits) != ("train", "test"):
        raise UsageError("data.train_split, data.eval_splits: an SMS collection has the splits train and test")
    (path,) = files.paths["train"]
    messages = _read_split((path,), config, header=SMS_FIELDS)
    (texts,) = messages.texts
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    distinct = sorted(first.values())
    is_test = {i: is_held_out(texts[i]) for i in distinct}
    splits = {
        "train": messages.take(i for i in distinct if not is_test[i]),
        "test": messages.take(i for i in distinct if is_test[i]),
    }
    for name, split in splits.items():
        if not len(split):
            raise UsageError(f"{path}: too few messages, none falls into the {name} split")
    return splits, [f"{len(messages) - len(distinct):,} repeated messages left out"]


FORMATS: dict[str, Callable[[DataConfig, DataFiles], tuple[dict[str, Split], list[str]]]] = {
    "sms": _read_sms,
    "glue": _read_glue,
}
"""data.format -> how its files become splits, and what is to be noted."""


def _read_split(paths: tuple[Path, ...], config: DataConfig, header: tuple[str, ...] | None = None) -> Split:
    texts: tuple[list[str], ...] = tuple([] for _ in config.text_fields)
    labels: list[int] = []
    for path in paths:
        table = read_table(path, header=header, encoding=config.encoding, quoting=config.quoting)
        for column, field in zip(texts, config.text_fields, strict=True):
            column.extend(table.texts(names_in_files(field, config.aliases), "data.text_fields"))
        labels += _read_labels(table, config)
    if not labels:
        raise UsageError(f"{', '.join(map(str, paths))}: no examples")
    return Split(texts, np.array(labels, dtype=np.int64))


def _read_labels(table: Table, config: DataConfig) -> list[int]:
    class_ids = _class_ids(config.labels)
    names = names_in_files(config.label_field, config.aliases)
    ids = [class_ids.get(str(value)) for value in table.column(names, "data.label_field")]
    if None in ids:
        where = table.where(ids.index(None))
        raise UsageError(
            f"{where}: field '{table.name_of(names)}' holds none of data.labels ({', '.join(config.labels)})"
        )
    return [class_id for class_id in ids if class_id is not None]


def _class_ids(names: list[str]) -> dict[str, int]:
    """Label string -> class id: by name, never by order of appearance.

    Where no name is itself a number, a file may also hold the ids (GLUE's SST-2: 0, 1 for negative, positive).
    """
    ids = {name: i for i, name in enumerate(names)}
    if not any(name.isdecimal() for name in names):
        ids |= {str(i): i for i in range(len(names))}
    return ids
