"""Whether data and weights are what the names of a configuration promise.

A name (`data: sms_spam`, `model: minilm`) belongs to the content that its YAML lists under `known`: of data the digests
of its rows, of weights the digest of their files, or a revision of a hub's repository. What a run reads from anywhere
else is own data or own weights. It takes its name from its file, folder or repository, and fills no cell of the name.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

OWN = {"data": "own data", "model": "own weights", "llm": "own weights"}
"""Group -> the mark of content that is not what the name of the group promises."""


@dataclass(frozen=True)
class Content:
    """What stands behind the name of a group (data, model, llm).

    name: what to call it: the group's own name where `known`, else that of the file, folder or repository.
    digest: equal for equal content.
    known: it is what the group's name promises.
    splits: of data, the digest of each split: what `known` would have to list.
    """

    name: str
    digest: str
    known: bool
    splits: dict[str, str] = field(default_factory=dict)


def digest_of_rows(split: str, columns: Iterable[Sequence[str]]) -> str:
    """64 hexadecimal digits of the texts of a split in their order: about 0.2 s for 400,000 sentences.

    columns: of N texts each (sentences, names of labels).
    """
    digest = hashlib.sha256(split.encode())
    for column in columns:  # the lengths say where each text ends, whatever stands in it
        lengths = array("Q", map(len, column))
        if sys.byteorder == "big":
            lengths.byteswap()
        digest.update(f"\n{len(column)}\n".encode() + lengths.tobytes())
        digest.update("".join(column).encode("utf-8", "surrogatepass"))  # JSON may hold half a character
    return digest.hexdigest()


def of_splits(group: Any, source: str, splits: Mapping[str, str], fingerprint: str = "") -> Content:
    """The content of data that were read.

    group: a data configuration, which may list `known`. source: name of the file, folder or repository. splits: name ->
    digest of its rows. fingerprint: of where the rows came from, `hub:...` of a repository at a revision.
    """
    digest = hashlib.sha256("".join(splits[name] for name in sorted(splits)).encode()).hexdigest()
    known = known_of(group).issuperset(splits.values()) or is_listed(group, fingerprint)
    return Content(group.name if known else source, digest, known, dict(splits))


def notes(group: Any, found: Content) -> list[str]:
    """The sentence below the results where data are not those that a name promises."""
    is_other = not found.known and known_of(group)
    return [f"own data: {found.name}, not the rows that {group.name} names"] if is_other else []


def remembered(schema: type, group: Any, fingerprint: str, read: Callable[[], Content]) -> Content:
    """What `read` finds, read once in a process for the same files and the same settings of `group`."""
    settings = {one.name: getattr(group, one.name, None) for one in fields(schema)}
    key = f"{fingerprint} {settings}"
    if key not in _remembered:
        _remembered[key] = read()
    return _remembered[key]


_remembered: dict[str, Content] = {}


def is_listed(group: Any, fingerprint: str) -> bool:
    """Whether `known` names a fingerprint, or the repository of a `hub:<id>@<revision>` whatever its revision.

    Where `known` is null nobody says what the name stands for: then all that comes from no path does.
    """
    if getattr(group, "known", None) is None:
        return not getattr(group, "path", None)
    return not known_of(group).isdisjoint((fingerprint, fingerprint.rpartition("@")[0]))


def known_of(group: Any) -> frozenset[str]:
    """What a configuration lists under `known`; nothing where it has no such field, as those of before."""
    return frozenset(getattr(group, "known", None) or ())


def source_name(path: str | Path) -> str:
    """What own content is called: its folder, or its file without the endings."""
    path = Path(path).expanduser().absolute()
    return path.name if path.is_dir() else path.name.partition(".")[0] or path.name


def repository_name(hub_id: str, part: str | None = None) -> str:
    """The same of a hub's repository, and the part of it that is read."""
    return "-".join(filter(None, [hub_id.rpartition("/")[2], part]))


def of_paths(config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Content]:
    """What is known of content that nobody has compared with its name: where the configuration gives a path, it is
    own content.

    config: group -> its fields. inputs: the fingerprints of what the run reads.
    """
    groups = {group: config.get(group) or {} for group in OWN}
    paths = {group: fields.get("path") for group, fields in groups.items() if fields.get("backend") != "replay"}
    return {
        group: Content(source_name(path), inputs.get(group, str(path)), known=False)
        for group, path in paths.items()
        if path
    }


def own(contents: Mapping[str, Content]) -> dict[str, str]:
    """Group -> digest of the content that is not what the group's name promises."""
    return {group: content.digest for group, content in contents.items() if not content.known}
