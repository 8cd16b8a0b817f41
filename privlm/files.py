"""Durable files: a reader sees the old content or the new one, never half of either.

Every file of a run directory is written through this module, so a run that is killed between any two of these calls can
be resumed.

What is read back is what was written, or is refused by name: a JSON object holds the digest of its other entries, and
beside the files of a folder lie theirs. Files of older versions have none; they are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from privlm.errors import UsageError

SEAL = "sha256"
"""Entry of a JSON object: the digest of the others."""

DIGESTS = "digests.json"
"""Beside the files of a folder: name -> digest."""


class DamagedFileError(UsageError, ValueError):
    """A file of a run directory is not the one that was written."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path} is damaged ({reason}): restore it from a copy, or make the run again with --force")


def write_text(path: Path, text: str) -> None:
    """Replaces the file `path` by `text`, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any, *, seal: bool = True) -> None:
    """Replaces the file `path` by `value` as strict JSON (NaN and infinities become strings); an object is sealed.

    seal: False where the value holds sealed objects and what is around them may change by other hands.
    """
    content = sealed(value) if isinstance(value, dict) and seal else finite(value)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the digest of what it holds."""
    plain = {name: value for name, value in finite(dict(content)).items() if name != SEAL}
    return {**plain, SEAL: _digest(plain)}


def unsealed(content: Any, path: Path) -> Any:
    """What was sealed, at any depth, without the digests; an object without one is of an older version.

    path: for the message. Raises DamagedFileError where a digest is that of something else.
    """
    if isinstance(content, list):
        return [unsealed(value, path) for value in content]
    if not isinstance(content, dict):
        return content
    plain = {name: value for name, value in content.items() if name != SEAL}
    if SEAL in content and content[SEAL] != _digest(plain):
        raise DamagedFileError(path, "its content is not what was written")
    return {name: unsealed(value, path) for name, value in plain.items()}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Replaces the file `path` by what `fill` writes into a temporary one, durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    fill(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file `path` by `content`, durably."""

    def fill(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_file(path, fill)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file.

    Raises DamagedFileError for what is no JSON, or not what `write_json` has written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # of the encoding too
        raise DamagedFileError(path, "it is empty" if not path.stat().st_size else f"not JSON: {error}") from error
    return unsealed(content, path)


def read_intact_json(path: Path) -> Any:
    """The same, and None for a damaged file, where another reader refuses it."""
    try:
        return read_json(path)
    except DamagedFileError:
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
    old = path.with_name(f".{path.name}.old.tmp")
    remove(old)
    if path.exists():
        os.replace(path, old)  # not removed first: a reader would see half of it
    os.replace(temporary, path)
    sync_directory(path.parent)
    remove(old)


def remove(path: Path) -> None:
    """Removes a file or a folder with all it holds, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unfinished(directory: Path) -> list[Path]:
    """What writes that a kill has cut short have left below `directory`."""
    return sorted(path for path in directory.rglob(".*.tmp") if path.exists())


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
    """The objects of a JSON-lines file; a line may be sealed.

    A last line cut short by a kill is left out; a broken earlier one is an error.

    left_out: takes the numbers of broken lines, which then are no error.
    """
    if not path.exists():
        return []
    objects = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            objects += [unsealed(json.loads(line), path)] if line else []
        except AttributeError:  # JSON, but no object
            if left_out is None:
                raise DamagedFileError(path, f"line {number} is no JSON object") from None
            left_out.append(number)
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


def sha256_once(path: Path) -> str:
    """The same, computed once in a process as long as the file stays: weights have gigabytes, and are asked for often."""
    status = os.stat(path)
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)


def digests_of(folder: Path) -> dict[str, str]:
    """Path within `folder` -> sha256 of every file below it but DIGESTS."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def write_digests(folder: Path) -> None:
    """Puts DIGESTS beside the files of a folder; `write_directory` makes them durable."""
    (folder / DIGESTS).write_text(json.dumps(digests_of(folder)), encoding="utf-8")


def damaged_files(folder: Path) -> list[str]:
    """Names of the files that are absent, unknown to DIGESTS, or not what was written.

    Raises OSError without DIGESTS, ValueError where that file is damaged itself.
    """
    digests = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    if not isinstance(digests, dict):
        raise ValueError(f"{DIGESTS} holds no object")
    found = digests_of(folder)
    return sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))


def cache_folder() -> Path:
    """Of what can be made again: PRIVLM_CACHE, else ~/.cache/privlm."""
    return Path(os.environ.get("PRIVLM_CACHE") or "~/.cache/privlm").expanduser()


def sync_directory(path: Path) -> None:
    """Makes names in a directory durable: of new files, and of renamed ones."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
