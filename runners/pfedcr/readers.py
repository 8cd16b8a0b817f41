"""A user's own lines: a folder of images with labels.tsv for each client, one folder with a client column, or lmdb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.privacy import keyed_random

LABELS, ALPHABET = "labels.tsv", "alphabet.txt"
LMDB = "data.mdb"
NEEDED = ("image", "text")
"""Columns of labels.tsv; `split` (train or test) is one more, and that of data.client_column."""

COUNT, IMAGE, LABEL = "num-samples", "image-%09d", "label-%09d"
"""Keys of an lmdb, as the benchmark of Chinese text recognition has them (arXiv 2112.15093)."""


@dataclass(frozen=True)
class Sample:
    """A line as it lies there. content: of its image file; None where there is none. problem: what rules it out."""

    content: bytes | None
    label: str
    where: str
    split: str
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """The lines of one client. read: each time anew; images are many. alphabet: what it declares, None for nothing."""

    read: Callable[[], Iterator[Sample]]
    alphabet: Path | None


def sources(data: Any) -> dict[str, Source]:
    """Client -> its lines. data: a LinesConfig of source folder or lmdb.

    Raises UsageError where nothing is there, or a client of data.clients is not.
    """
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UsageError(f"data.path: there is no folder {root}")
    found = _by_column(root, data) if data.client_column else _by_folder(root, data)
    absent = [name for name in data.clients if name not in found]
    if absent:
        raise UsageError(f"data.clients: no client {absent[0]} in {root}; there are {', '.join(found)}")
    return {name: found[name] for name in data.clients or found}


def fingerprint(data: Any) -> str:
    """Of all files below data.path, whatever the folder is called."""
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UsageError(f"data.path: there is no folder {root}")
    digest = sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "lock.mdb":  # readers write it
            digest.update(f"{path.relative_to(root)}\n{sha256_file(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _by_folder(root: Path, data: Any) -> dict[str, Source]:
    wanted, read = (LMDB, _read_lmdb) if data.source == "lmdb" else (LABELS, _read_folder)
    found = {
        folder.name: Source(partial(read, folder, data), _declared(folder))
        for folder in sorted(root.iterdir())
        if (folder / wanted).is_file()
    }
    if not found:
        raise UsageError(f"data.path: no folder in {root} holds {wanted}: give one such folder for each client")
    return found


def _by_column(root: Path, data: Any) -> dict[str, Source]:
    clients = dict.fromkeys(row[data.client_column] for _, row in _table(root / LABELS, (data.client_column,)))
    return {name: Source(partial(_read_folder, root, data, name), _declared(root)) for name in clients}


def _declared(folder: Path) -> Path | None:
    path = folder / ALPHABET
    return path if path.is_file() else None


def _read_folder(folder: Path, data: Any, client: str | None = None) -> Iterator[Sample]:
    names = set()
    for number, row in _table(folder / LABELS, (data.client_column,) if client is not None else ()):
        if client is not None and row[data.client_column] != client:
            continue
        name, where = row["image"], f"{folder.name}/{LABELS} line {number}"
        problem = "image named twice" if name in names else None
        names.add(name)
        split = row.get("split") or _split(data, number)
        if split not in ("train", "test"):
            raise UsageError(f"{folder / LABELS}, line {number}: column split holds neither train nor test")
        yield Sample(_content(folder, name), row["text"], where, split, problem)


def _content(folder: Path, name: str) -> bytes | None:
    """None for what is no file in the folder."""
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    return path.read_bytes() if inside and path.is_file() else None


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and row of a file of tab-separated values, whatever its line ends; a text may hold any character but
    a tab. Raises UsageError for a missing column, another number of fields, or what is no UTF-8.
    """
    if not path.is_file():
        raise UsageError(f"data.path: there is no file {path}")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    header = lines[0].rstrip("\r").split("\t")
    absent = [name for name in (*NEEDED, *columns) if name not in header]
    if absent:
        raise UsageError(f"{path}: no column '{absent[0]}' in its first line, which names them: {', '.join(header)}")
    for number, line in enumerate(lines[1:], start=2):
        if not line.rstrip("\r"):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header):
            raise UsageError(f"{path}, line {number}: {len(fields)} fields, and {len(header)} columns")
        yield number, dict(zip(header, fields, strict=True))


def _split(data: Any, number: int) -> str:
    """Of a line that names none: drawn by its place and data.seed."""
    return "test" if keyed_random.generator("line split", data.seed, number).random() < data.test_share else "train"


def _read_lmdb(folder: Path, data: Any) -> Iterator[Sample]:
    import lmdb

    try:
        opened = lmdb.open(str(folder), readonly=True, lock=False)
    except lmdb.Error as error:
        raise UsageError(f"data.path: {folder} is no lmdb that can be read ({type(error).__name__})") from None
    with closing(opened) as environment, environment.begin() as transaction:
        count = transaction.get(COUNT.encode())
        if count is None or not count.isdigit():
            raise UsageError(f"{folder}: no key {COUNT} says how many lines there are: is it an lmdb of text lines?")
        for number in range(1, int(count) + 1):
            label = transaction.get((LABEL % number).encode())
            where = f"{folder.name} line {number}"
            problem = "no label" if label is None else None
            text = (label or b"").decode("utf-8", "replace")
            yield Sample(transaction.get((IMAGE % number).encode()), text, where, _split(data, number), problem)
