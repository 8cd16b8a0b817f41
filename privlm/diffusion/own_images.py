"""A folder of a user's own images, looked through: what can be used of it, by split, and what is told of the rest.

What cannot be used is counted and named by its place; where it is more than data.max_bad_share, the folder is refused.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from privlm.diffusion.image_files import UnusableError, read_picture
from privlm.diffusion.image_folder import Sample, read_folder
from privlm.diffusion.image_rows import SPLITS, ImageRow, Images
from privlm.errors import UsageError
from privlm.privacy import keyed_random

NUM_NAMED = 3  # of many rows with one problem
LONG = 1000  # characters of a caption, far more than a text encoder reads
NUM_THREADS = 8  # that decode at most; decoding leaves Python's lock

Places = Mapping[str, Sequence[str]]
"""What is told of rows -> where they stand."""


def look_through(root: Path, data: Any) -> Images:
    """data: an ImagesConfig. Every image is opened and decoded once.

    Raises UsageError: nothing to train on, a malformed table of captions, or too many rows that cannot be used.
    """
    found = read_folder(root, data)
    seen = _Seen.of(found.samples)
    _refuse_many(root, seen.unusable, len(found.samples), data.max_bad_share)
    by_split = _limited(seen.rows if seen.is_split else _drawn(seen.rows, data), data)
    notes = [
        *found.notes,
        *(f"images left out: {clause}" for clause in _clauses(seen.unusable)),
        *_clauses({"animated images, of each the first frame": seen.animated}),
        *_of_captions(by_split["train"]),
    ]
    if not by_split["train"]:
        raise UsageError(f"data.path: {root} has no image to train on; {'; '.join(notes) or 'none is of that split'}")
    return _with_scenes(Images(by_split["train"], by_split["validation"], by_split["test"], notes))


@dataclass
class _Seen:
    """rows: what can be used. is_split: some row names its split. unusable: problem -> where. animated: where."""

    rows: list[ImageRow] = field(default_factory=list)
    is_split: bool = False
    unusable: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    animated: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _Seen:
        seen = cls(is_split=any(sample.split for sample in samples))
        with ThreadPoolExecutor(min(NUM_THREADS, os.cpu_count() or 1)) as pool:
            for sample, opened in zip(samples, pool.map(_open, samples), strict=True):
                seen._add(sample, opened)
        return seen

    def _add(self, sample: Sample, opened: str | tuple[str, bool]) -> None:
        if isinstance(opened, str):
            self.unusable[opened].append(sample.where)
            return
        digest, is_animated = opened
        self.animated += [sample.where] if is_animated else []
        split, where = sample.split or "train", sample.where
        self.rows.append(ImageRow(sample.text, sample.prompt, split, where, digest, sample.scene, file=sample.file))


def _open(sample: Sample) -> str | tuple[str, bool]:
    """What rules it out, or the digest of its file and whether it is animated."""
    if sample.problem is not None or sample.file is None:
        return sample.problem or "no image"
    try:
        content = sample.file.read_bytes()
        return sha256(content).hexdigest(), read_picture(content).is_animated
    except UnusableError as error:
        return str(error)
    except OSError:
        return "image that cannot be read"


# --- splits ---------------------------------------------------------------------------------------------------------


def _drawn(rows: Sequence[ImageRow], data: Any) -> list[ImageRow]:
    """Split by content and seed, where no row says where it belongs; copies of an image lie together."""
    num_test, num_validation = data.num_test or 0, data.num_validation or 0
    if 0 < len(rows) <= num_test + num_validation:
        raise UsageError(
            f"data.num_validation={num_validation}, data.num_test={num_test}: of {len(rows)} images that can be used, "
            "none is left to train on"
        )
    digests = sorted(
        (row.digest for row in rows), key=lambda one: keyed_random.key_bits("split of an image", data.seed, one)
    )
    names = dict.fromkeys(digests[num_test : num_test + num_validation], "validation")
    names |= dict.fromkeys(digests[:num_test], "test")
    return [replace(row, split=names.get(row.digest, "train")) for row in rows]


def _limited(rows: Iterable[ImageRow], data: Any) -> dict[str, list[ImageRow]]:
    by_split: dict[str, list[ImageRow]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[row.split].append(row)
    return {split: of_split[: getattr(data, f"num_{split}")] for split, of_split in by_split.items()}


def _with_scenes(images: Images) -> Images:
    """With what the rows themselves say of scenes that are not in training."""
    trained = {row.scene for row in images.train}
    test = [replace(row, is_held_out=row.scene is not None and row.scene not in trained) for row in images.test]
    held_out = frozenset(row.scene for row in test if row.scene is not None and row.is_held_out)
    return replace(images, test=test, held_out=held_out)


# --- what is told and what is refused -------------------------------------------------------------------------------


def _clauses(places: Places) -> list[str]:
    """One a problem, the most frequent first; of a row its place is told, never its captions."""
    return [
        f"{len(where)} {problem} ({', '.join(where[:NUM_NAMED])}{', ...' if len(where) > NUM_NAMED else ''})"
        for problem, where in sorted(places.items(), key=lambda one: -len(one[1]))
        if where
    ]


def _refuse_many(root: Path, unusable: Places, num_rows: int, allowed: float) -> None:
    num_bad = sum(map(len, unusable.values()))
    if num_bad > allowed * num_rows:
        raise UsageError(
            f"data.path: {num_bad} of {num_rows} rows of {root} cannot be used, more than "
            f"data.max_bad_share={allowed:g} allows: {'; '.join(_clauses(unusable))}; see to them, or raise it"
        )


def _of_captions(rows: Sequence[ImageRow]) -> list[str]:
    notes = []
    if len(rows) > 1 and len({(row.text, row.prompt) for row in rows}) == 1:
        notes.append("warning: all captions are equal, so no model learns from them what an image shows")
    elif len(rows) > 1 and all(row.text == row.prompt for row in rows):
        notes.append("warning: sentence and keywords are the same in every row")
    long = [row.where for row in rows if max(len(row.text), len(row.prompt)) > LONG]
    what = f"captions of more than {LONG} characters, of which a text encoder reads the beginning"
    return notes + _clauses({what: long})
