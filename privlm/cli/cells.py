"""The cell hash of a table's row, remembered on disk: composing a row takes half a second, and a table has many.

What is remembered holds as long as nothing has changed that composition reads: every file of PrivLM, of the runners, of
outside tasks and of the folders of configs, and the variables of the environment that these name. Rows that name own
data or weights are composed each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm import content, files, registry
from privlm.errors import UsageError

if TYPE_CHECKING:
    from privlm.cli.compose import Composed
    from privlm.report.tables import Resolve

COMPOSED_BY = ("hydra-core", "omegaconf")
_VARIABLE = re.compile(rb"\$\{oc\.env:(\w+)")
KEPT = 8
"""Memories of other checkouts, folders of configs or versions that stay beside this one."""


def cell_hasher(config_dirs: Sequence[Path]) -> Resolve:
    """Overrides -> the cell hash of the run they make, with the user's folders searched for configs."""
    path = _memory(config_dirs)
    known = _read(path)

    def resolve(overrides: list[str]) -> str:
        from privlm.cli.compose import Words, compose

        key = "\n".join(overrides)
        if key not in known:
            composed = compose(Words(tuple(overrides), tuple(config_dirs)))
            if _own(composed.config):
                return hash_of(composed)
            known[key] = hash_of(composed)
            _write(path, known)
        return known[key]

    return resolve


def hash_of(composed: Composed) -> str:
    """The cell hash of a composed run."""
    from privlm.identity import cell_hash

    return cell_hash(composed.config, composed.roles, _own(composed.config))


def _own(config: Any) -> dict[str, str]:
    """Own data and weights of a row that names a path; what is not at hand is like nothing that was run."""
    if not (own := content.own(content.of_paths(config, {}))):
        return {}
    entry = registry.entry_of(config)
    try:
        return content.own(entry.contents(config, entry.inputs(config)))
    except UsageError:
        return own


def _memory(config_dirs: Sequence[Path]) -> Path:
    """Named after all that composition reads."""
    digest = hashlib.sha256("\n".join([sys.version, *map(version, COMPOSED_BY)]).encode())
    for path in _read_by_composition(config_dirs):
        text = path.read_bytes()
        digest.update(f"\n{path}\n{len(text)}\n".encode() + text)
        for variable in _VARIABLE.findall(text) if path.suffix == ".yaml" else ():
            digest.update(repr(os.environ.get(variable.decode())).encode())
    return files.cache_folder() / "cells" / f"{digest.hexdigest()[:32]}.json"


def _read_by_composition(config_dirs: Sequence[Path]) -> Iterator[Path]:
    packages = {Path(registry.__file__).parent, registry.runners_dir()}
    packages |= {task.folder for task in registry.tasks().values()}
    for folder in sorted(packages):
        yield from sorted(folder.rglob("*.py"))
    for folder in registry.config_dirs(config_dirs):
        yield from sorted(folder.rglob("*.yaml"))


def _read(path: Path) -> dict[str, str]:
    try:
        found = files.read_json(path)
    except (OSError, files.DamagedFileError):  # composed and written anew
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, known: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written makes it slower, and no less right
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, known)
        for old in sorted(path.parent.glob("*.json"), key=lambda one: one.stat().st_mtime, reverse=True)[KEPT:]:
            old.unlink()
