"""The ledger of a run directory, held against every head of it that other files of the run have recorded.

Guarantee: an account that is given here is whole up to the last recorded head, and that of a run that is done up to its
end. What lies after the last recorded head is whole up to its own last line; whether lines were cut there, nobody can
see.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import files
from privlm.errors import UsageError
from privlm.privacy.ledger import Head, Ledger
from privlm.privacy.ledger_chain import LEDGER, REMEDY, previous_accounts

KEY = "ledger"
"""Under which a file of a run keeps the head of the ledger that it was made with."""

_RECORDS = ("result.json", "privacy.json", "stages/*/*/training.json", "checkpoints/*/step-*/progress.json")


@dataclass(frozen=True)
class Recorded:
    """A head, and the file of the run directory that keeps it."""

    head: Head
    file: str


@dataclass(frozen=True)
class RunAccount:
    """A ledger that adds up. last: the furthest recorded head; None where nothing was recorded yet."""

    ledger: Ledger
    last: Recorded | None

    @property
    def num_unrecorded(self) -> int:
        """Releases after the last recorded head."""
        return self.ledger.head.releases - (self.last.head.releases if self.last else 0)

    def describe(self) -> str:
        """How far the account is known to be whole, in a sentence."""
        number = self.ledger.head.releases
        if not self.ledger.is_chained:
            return f"{number} releases, of an older version: without digests, so that nobody can say if all are there"
        if self.last is None:
            return f"{number} releases, without a gap; no file has recorded the end, so that a cut there is not seen"
        told = f"{number} releases, whole up to release {self.last.head.releases}, recorded by {self.last.file}"
        after = f"; {self.num_unrecorded} after it, without a gap, but a cut at their end is not seen"
        return told + (after if self.num_unrecorded else "")


def read_account(directory: Path) -> RunAccount | None:
    """The account of a run, in whatever state; None where there is none (no privacy, or no step yet).

    Raises UsageError, naming file and line, where the ledger is not a chain, or a recorded head does not lie on it, or
    the result of a run that is done is not of its end.
    """
    is_done = _is_done(directory)
    recorded = list(_recorded(directory))  # before the ledger, which a running process writes first
    path = directory / LEDGER
    if not path.exists() and not recorded:
        return None
    ledger = Ledger(path)
    if not path.exists() and any(record.head.releases for record in recorded):
        raise UsageError(f"{path} is missing, and {recorded[0].file} has recorded its releases. {REMEDY}")
    for record in recorded:
        ledger.require(record.head, record.file)
    if is_done:
        _require_end(directory, ledger, recorded)
    return RunAccount(ledger, max(recorded, key=lambda record: record.head.releases, default=None))


def resumable(directory: Path) -> RunAccount | None:
    """`read_account`, for a run that goes on. Raises UsageError also for an account of an older version."""
    account = read_account(directory)
    if account is not None and not account.ledger.is_chained:
        raise UsageError(
            f"{directory / LEDGER} is of an older version, whose lines hold no digests: nothing says that it is whole, "
            "so that the run cannot go on. Start again with --force, which keeps this account beside the new one"
        )
    return account


def put_aside(directory: Path) -> Path | None:
    """Keeps the account of a run that --force is about to remove, whatever its state; where it then lies."""
    path = directory / LEDGER
    if not path.exists() or path.stat().st_size == 0:
        return None
    accounts = previous_accounts(path)
    number = 1 + max((int(account.stem.rpartition(".")[2]) for account in accounts), default=0)
    kept = path.with_name(f"{path.stem}.{number}{path.suffix}")
    path.rename(kept)
    files.sync_directory(directory)
    return kept


def kept_accounts(directory: Path) -> list[Path]:
    """The accounts that --force has put aside in this directory, in their order."""
    return previous_accounts(directory / LEDGER)


def as_json(head: Head) -> dict[str, Any]:
    """What goes under KEY."""
    return head._asdict()


def _recorded(directory: Path) -> Iterator[Recorded]:
    """Raises UsageError for a file that keeps something else under the name."""
    for pattern in _RECORDS:
        for path in sorted(directory.glob(pattern)):
            content = _content(path)
            if path.name == "progress.json":
                content = content.get("progress") if _is_as_written(path) else None
            if not isinstance(content, Mapping) or content.get(KEY) is None:
                continue
            name = path.relative_to(directory).as_posix()
            try:
                yield Recorded(Head.from_json(content[KEY]), name)
            except ValueError as error:
                raise UsageError(f"{path}: {KEY}: {error}. {REMEDY}") from error


def _content(path: Path) -> Any:
    """What a JSON file holds, {} where it is gone or damaged, which its own readers say."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_as_written(path: Path) -> bool:
    """Whether the digests of a checkpoint (privlm.training.checkpoint) know this file."""
    digests = _content(path.with_name("digests.json"))
    try:
        return isinstance(digests, dict) and digests.get(path.name) == files.sha256_file(path)
    except OSError:  # the checkpoint was tidied away meanwhile
        return False


def _is_done(directory: Path) -> bool:
    status = _content(directory / "status.json")
    return isinstance(status, dict) and status.get("state") == "done"


def _require_end(directory: Path, ledger: Ledger, recorded: list[Recorded]) -> None:
    """Of a run that is done nothing may follow what its result was made of."""
    for record in recorded:
        if record.file == "result.json" and record.head.releases < ledger.head.releases:
            raise UsageError(
                f"{directory / LEDGER}: line {record.head.releases + 1} was added after the run was done: result.json "
                f"has recorded {record.head.releases} releases. {REMEDY}"
            )
    privacy = _content(directory / "privacy.json")
    certificate = privacy.get("certificate") if isinstance(privacy, dict) else None
    if isinstance(certificate, dict) and (ledger.head.releases or "ledger" in privacy):
        told = Counter[tuple[float, float]]()
        for part in certificate["segments"]:
            told[part["sampling_rate"], float(part["noise_multiplier"])] += part["steps"]
        found = {
            (part.sampling_rate, part.noise_multiplier): part.steps for part in ledger.segments(unit=privacy["unit"])
        }
        if +told != found:
            raise UsageError(
                f"{directory / LEDGER}: its {sum(found.values())} releases are not the {told.total()} whose price "
                f"privacy.json tells. {REMEDY}"
            )
