"""Durable files: a reader sees the old content or the new one, never half of either.

Every file of a run directory is written through this module, so a run that is killed between any two of these calls can
be resumed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces the file `path` by `text`, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces the file `path` by `value` as strict JSON (NaN and infinities become strings)."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def write_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Replaces the file `path` by what `fill` writes into a temporary one, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    fill(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes the directory `path` with the content that `fill` writes into a temporary one; all of it or nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    fill(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends one JSON object a line, in one write."""
    text = "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def append_durably(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends one JSON object a line; they are on disk when this returns."""
    append_json_lines(path, rows)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_json_lines(path: Path, left_out: list[int] | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    A last line cut short by a kill is left out; a broken earlier one is an error.

    left_out: takes the numbers of broken lines, which then are no error.
    """
    if not path.exists():
        return []
    objects = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            objects += [json.loads(line)] if line else []
        except ValueError:
            if left_out is None:
                raise
            left_out.append(number)
    return objects


def cut_torn_line(path: Path) -> None:
    """Removes an unfinished last line, so that the next append does not continue it."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as the strings nan, inf and -inf, which strict JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Makes names in a directory durable: of new files, and of renamed ones."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
