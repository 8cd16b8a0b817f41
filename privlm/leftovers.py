"""What a run has no more use for, and is made of its texts: it goes before the run is done.

A stage names what it will leave (`discard` in its record in status.json), so that whoever finds the directory later can
still remove it: the same command, which skips a finished run, or `privlm doctor RUN --clean`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from privlm import files

OF_BEFORE = {"features": "stages/features/features.safetensors"}
"""Stage -> its file of features of private texts, in runs whose status.json does not say so."""


def of_run(directory: Path, status: Mapping[str, Any]) -> list[Path]:
    """What lies in the directory of a run that is done and was to be removed; of any other run, unfinished writes.

    status: the content of its status.json.
    """
    found = files.unfinished(directory)
    if status.get("state") == "done":
        found += [path for path in discarded(directory, status) if path.exists()]
    return sorted(set(found))


def discarded(directory: Path, status: Mapping[str, Any]) -> Iterator[Path]:
    """What the stages of a run have named as of no use when it is done."""
    for name, record in status.get("stages", {}).items():
        for path in record.get("discard", [OF_BEFORE[name]] if name in OF_BEFORE else []):
            yield directory / path


def remove(directory: Path, status: Mapping[str, Any]) -> list[Path]:
    """Removes what `of_run` finds; the caller holds the run's lock."""
    found = of_run(directory, status)
    for path in found:
        files.remove(path)
    return found
