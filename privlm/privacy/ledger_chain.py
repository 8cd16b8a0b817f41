"""The lines of a privacy ledger, and the chain that they form.

A line holds the digest of the line before it and its own, and is written in one form only: a line that was edited,
removed, doubled, moved or taken from another file is named when it is read, wherever it stands. Two things the chain
alone does not see: lines cut from its end, and a chain that somebody has computed anew. Both are seen up to the last
head that another file of the run has recorded (privlm.privacy.run_account).

A ledger of an older version has no digests: its numbers can be read, and nothing says that it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from privlm.errors import UsageError

SCHEMA = 2
UNITS = ("record", "user", "client")
START = 64 * "0"
"""What stands before the first line of a ledger that follows no other."""

REMEDY = (
    "What was spent is unknown: restore the file from a copy, or start again with --force, which keeps this account "
    "beside the new one"
)


@dataclass(frozen=True)
class Setting:
    """What the accounting of a release depends on, and what its noise is scaled to."""

    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    expected_batch_size: float
    unit: str  # what one clipped gradient belongs to: one of UNITS


class Kind(NamedTuple):
    """Releases that an epsilon may count together: steps of one segment of an accountant, for one unit."""

    unit: str
    population: str
    sampling_rate: float
    noise_multiplier: float


@dataclass(frozen=True)
class Release:
    """One line of the ledger. A line of an older version names no stage, population, device, derivation or sums."""

    segment: int  # counts runs of releases of one stage and population with the same setting
    step: int
    setting: Setting
    noise_id: str
    stage: str = ""
    population: str = ""  # whose units: "" where there is one population, or for units of all
    device: str = ""  # that drew the noise
    derivation: int = 1  # keyed_random.DERIVATION of that time
    sums: str = ""  # tells the sums before noise from others (Noise.seal); "" where the noise is never drawn again

    @property
    def kind(self) -> Kind:
        setting = self.setting
        return Kind(setting.unit, self.population, setting.sampling_rate, setting.noise_multiplier)

    def is_like(self, other: Release) -> bool:
        """Whether the two belong to one segment where no other lies between them."""
        return (self.stage, self.population, self.setting) == (other.stage, other.population, other.setting)


class Head(NamedTuple):
    """The end of a ledger: the number of its lines, and the digest of the last."""

    releases: int
    digest: str

    @classmethod
    def from_json(cls, value: Any) -> Head:
        """Raises ValueError for what is no head."""
        fields = value if isinstance(value, dict) else {}
        releases, digest = fields.get("releases"), fields.get("digest")
        if not _is_whole(releases) or not _is_digest(digest) or set(fields) != {"releases", "digest"}:
            raise ValueError("no head of a ledger: number of releases and digest of the last")
        return cls(releases, digest)


class Line(NamedTuple):
    """A line as it was read. digest: "" in a ledger of an older version."""

    release: Release
    digest: str


def encode(release: Release, before: str) -> tuple[bytes, str]:
    """The line of a release that follows the digest `before`, and its own digest. Raises ValueError for a release that
    could not be read again.
    """
    fields = {"schema": SCHEMA, **_fields(release), "before": before}
    _check(fields)
    text = json.dumps(fields, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-1]}, "digest": "{digest}"}}\n'.encode(), digest


def decode(path: Path, content: bytes, start: str) -> list[Line]:
    """The lines of a ledger's file; what follows the last line end was being written, and is absent.

    start: what stands before the first line. Raises UsageError, naming file and line, for whatever is not a release,
    or not the release that was written there.
    """
    lines: list[Line] = []
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            lines.append(_line(raw, lines[-1] if lines else None, start))
        except _Broken as fault:
            raise UsageError(f"{path}: line {number} {fault}. {REMEDY}") from None
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise UsageError(f"{path}: line {number} is not a release ({error}). {REMEDY}") from error
    return lines


class _Broken(Exception):
    """The line is a release, and not the one that was written there."""


def _line(raw: bytes, previous: Line | None, start: str) -> Line:
    """Raises _Broken, or whatever `_parse` raises."""
    fields = json.loads(raw.decode(), object_pairs_hook=_unique)
    is_older = isinstance(fields, dict) and "schema" not in fields
    if previous is not None and is_older != (previous.digest == ""):
        raise _Broken("and the line before it are of different versions: they were not written into one ledger")
    if is_older:
        return Line(_parse(fields, required=_OF_BEFORE), "")
    release = _parse(fields, required=_NAMES)
    before = start if previous is None else previous.digest
    if fields["before"] != before:
        raise _Broken(
            "does not follow the account that this one began after: that file has changed, or is gone"
            if previous is None
            else "does not follow the line before it: lines were removed, added, doubled, moved or edited"
        )
    text, digest = encode(release, before)
    if text != raw + b"\n":
        raise _Broken("is not what was written: it has been edited")
    if release.segment != (0 if previous is None else next_segment(previous.release, release)):
        raise _Broken(f"says segment {release.segment}, which does not follow from its setting")
    return Line(release, digest)


def next_segment(last: Release, release: Release) -> int:
    """The number of the segment that `release`, written after `last`, belongs to."""
    return last.segment + (not release.is_like(last))


def _fields(release: Release) -> dict[str, Any]:
    first = {name: getattr(release, name) for name in ("stage", "population", "segment", "step")}
    last = {name: getattr(release, name) for name in ("device", "derivation", "noise_id", "sums")}
    return first | asdict(release.setting) | last


_SETTING = tuple(Setting.__dataclass_fields__)
_OF_BEFORE = ("segment", "step", *_SETTING, "noise_id")
_CAME_LATER = ("stage", "population", "device", "derivation")
_NAMES = ("schema", *_OF_BEFORE, *_CAME_LATER, "sums", "before", "digest")


def _parse(fields: Any, required: tuple[str, ...]) -> Release:
    """Raises ValueError or TypeError for what no version has written."""
    if not isinstance(fields, dict):
        raise TypeError("no JSON object")
    if fields.get("schema", SCHEMA) != SCHEMA or isinstance(fields.get("schema"), bool):
        raise ValueError(f"schema {fields['schema']!r} is not known here: update PrivLM")
    known = (*required, *_CAME_LATER)
    if absent := [name for name in required if name not in fields]:
        raise ValueError(f"no {', '.join(absent)}")
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    _check(fields)
    values = {name: value for name, value in fields.items() if name not in ("schema", "before", "digest")}
    setting = Setting(**{name: values.pop(name) for name in _SETTING})
    return Release(**values, setting=setting)


def _check(fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a value that a release cannot have, and that an accountant might take for free."""
    for name, value in fields.items():
        is_right, right = _RIGHT[name]
        if not is_right(value):
            raise ValueError(f"{name} {value!r:.60} is not {right}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_digest(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


_RIGHT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "schema": (_is_whole, "a whole number"),
    "sampling_rate": (lambda value: _is_number(value) and 0 < value <= 1, "a number in (0, 1]"),
    "noise_multiplier": (lambda value: _is_number(value) and value >= 0, "a finite number >= 0"),
    "clipping_norm": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "expected_batch_size": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "unit": (lambda value: _is_text(value) and value in UNITS, f"one of {', '.join(UNITS)}"),
    "segment": (_is_whole, "a whole number >= 0"),
    "step": (_is_whole, "a whole number >= 0"),
    "derivation": (lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
    "noise_id": (lambda value: _is_text(value) and value != "", "a text"),
    "sums": (_is_text, "a text"),
    "stage": (_is_text, "a text"),
    "population": (_is_text, "a text"),
    "device": (_is_text, "a text"),
    "before": (_is_digest, "a digest"),
    "digest": (_is_digest, "a digest"),
}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError for a name that stands twice: readers differ in which they take."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands twice")
    return fields


def described(release: Release) -> str:
    """Stage, population and setting in a message."""
    names = {"stage": release.stage, "population": release.population}
    return ", ".join([*(f"{name} {value}" for name, value in names.items() if value), str(release.setting)])


def heads(lines: list[Line], start: str) -> Iterator[Head]:
    """The heads that the ledger has had, the empty one first."""
    yield Head(0, start)
    for number, line in enumerate(lines, start=1):
        yield Head(number, line.digest)
