"""The ledgers of a run directory, held against every head of them that other files of the run have recorded.

Guarantee: an account that is given here is whole up to the last recorded head of each ledger, and that of a run that is
done up to its end. What lies after the last recorded head is whole up to its own last line; whether lines were cut
there, nobody can see.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import files
from privlm.errors import UsageError
from privlm.privacy.accounts import Accounts, read_clients
from privlm.privacy.ledger import Head, Ledger
from privlm.privacy.ledger_chain import REMEDY
from privlm.privacy.ledger_paths import LEDGER, client_ledger, client_ledgers, is_of_client

KEY = "ledger"
"""Under which a file of a run keeps the head of the ledger that it was made with."""
KEYS = "ledgers"
"""Under which it keeps those of clients, by their ids."""

_RECORDS = ("result.json", "privacy.json", "stages/*/*/training.json", "checkpoints/**/progress.json")


@dataclass(frozen=True)
class Recorded:
    """A head, and the file of the run directory that keeps it. client: "" for the run's own ledger."""

    head: Head
    file: str
    client: str = ""


@dataclass(frozen=True)
class RunAccount:
    """Ledgers that add up. last_of: the furthest recorded head of each by its client, "" for the run's own."""

    whole: Accounts
    last_of: Mapping[str, Recorded]

    @property
    def ledger(self) -> Ledger:
        """The run's own."""
        return self.whole.run

    @property
    def last(self) -> Recorded | None:
        """The furthest recorded head of the run's own ledger; None where nothing was recorded yet."""
        return self.last_of.get("")

    @property
    def written_in(self) -> Path | None:
        """The file of the run's own ledger, or the folder of its clients', where only they hold releases."""
        own, *clients = (ledger.path for ledger in self.whole.ledgers)
        return own if self.ledger.releases or not clients else clients[0] and clients[0].parent

    @property
    def num_recorded(self) -> int:
        """Releases of all ledgers up to their last recorded heads."""
        return sum(record.head.releases for record in self.last_of.values())

    @property
    def num_unrecorded(self) -> int:
        """Releases after the last recorded heads."""
        return self.whole.num_releases - self.num_recorded

    @property
    def unknown_clients(self) -> list[str]:
        """Clients whose ledgers no file has recorded."""
        return [client for client in self.whole.clients if client not in self.last_of]

    def describe(self) -> str:
        """How far the account is known to be whole, in a sentence."""
        if not self.whole.clients:
            return self._describe_run()
        own = [self._describe_run()] if self.ledger.head.releases else []
        return "; ".join([*own, *self._describe_clients()])

    def _describe_run(self) -> str:
        number = self.ledger.head.releases
        if not self.ledger.is_chained:
            return f"{number} releases, of an older version: without digests, so that nobody can say if all are there"
        if self.last is None:
            return f"{number} releases, without a gap; no file has recorded the end, so that a cut there is not seen"
        told = f"{number} releases, whole up to release {self.last.head.releases}, recorded by {self.last.file}"
        num_after = number - self.last.head.releases
        return told + (
            f"; {num_after} after it, without a gap, but a cut at their end is not seen" if num_after else ""
        )

    def _describe_clients(self) -> Iterator[str]:
        records = [record for client, record in self.last_of.items() if client]
        num_releases = sum(head.releases for head in self.whole.heads.values())
        num_after = num_releases - sum(record.head.releases for record in records)
        told = f"{num_releases} releases in the ledgers of {_clients(len(self.whole.clients))}"
        if not records:
            yield f"{told}, without a gap; no file has recorded the ends, so that a cut there is not seen"
            return
        yield f"{told}, each whole up to the end that was recorded last, by {_named([r.file for r in records])}"
        if num_after:
            yield f"{num_after} after these ends, without a gap, but a cut at their end is not seen"
        if unknown := self.unknown_clients:
            yield f"the ledgers of {_clients(len(unknown))} are recorded by no file: {_named(unknown)}"


_MOST_NAMED = 5


def _clients(number: int) -> str:
    return f"{number} client{'s' if number > 1 else ''}"


def _named(names: Iterable[str]) -> str:
    """The first of them, and how many others there are."""
    distinct = list(dict.fromkeys(names))
    others = len(distinct) - _MOST_NAMED
    return ", ".join(distinct[:_MOST_NAMED]) + (f" and {others} others" if others > 0 else "")


def read_account(directory: Path) -> RunAccount | None:
    """The account of a run, in whatever state; None where there is none (no privacy, or no step yet).

    Raises UsageError, naming file and line, where a ledger is not a chain, or a recorded head does not lie on it, or
    the result of a run that is done is not of its end.
    """
    is_done = _is_done(directory)
    recorded = list(_recorded(directory))  # before the ledgers, which running processes write first
    paths = client_ledgers(directory)
    if not (directory / LEDGER).exists() and not paths and not recorded:
        return None
    for record in recorded:
        _refuse_missing(directory, record)
    whole = Accounts(Ledger(directory / LEDGER), read_clients(paths, {record.client for record in recorded}))
    last_of: dict[str, Recorded] = {}
    for record in recorded:
        if record.client and record.client not in whole.clients and not record.head.releases:
            continue  # it had begun, and released nothing yet
        ledger = whole.clients[record.client] if record.client else whole.run
        ledger.require(record.head, record.file)
        last_of[record.client] = max(last_of.get(record.client, record), record, key=lambda last: last.head.releases)
    if is_done:
        _require_end(directory, whole, recorded)
    return RunAccount(whole, last_of)


def resumable(directory: Path) -> RunAccount | None:
    """`read_account`, for a run that goes on. Raises UsageError also for an account of an older version."""
    account = read_account(directory)
    if account is not None and not account.whole.is_chained:
        older = next(ledger.path for ledger in account.whole.ledgers if not ledger.is_chained)
        raise UsageError(
            f"{older} is of an older version, whose lines hold no digests: nothing says that it is whole, "
            "so that the run cannot go on. Start again with --force, which keeps this account beside the new one"
        )
    return account


def as_json(head: Head) -> dict[str, Any]:
    """What goes under KEY, and under KEYS for each client."""
    return head._asdict()


def head_of(ledger: Ledger) -> dict[str, Any]:
    """What a file keeps that was made of the releases of this view of a ledger: the head, under KEY or under KEYS."""
    head = as_json(ledger.head)
    is_own = ledger.path is None or not is_of_client(ledger.path)
    return {KEY: head} if is_own else {KEYS: {ledger.population: head}}


def recorded_head(content: Mapping[str, Any], ledger: Ledger) -> Head | None:
    """The head of this ledger that `head_of` has put into `content`; None where there is none.

    Raises ValueError for what is no head.
    """
    (key, own), *_ = head_of(ledger).items()
    found = content.get(key)
    if key == KEYS and isinstance(found, Mapping):
        found = found.get(next(iter(own)))
    return None if found is None else Head.from_json(found)


def heads_of(whole: Accounts) -> dict[str, Any]:
    """What a file keeps that was made of all releases of a run: the heads of its ledgers."""
    own = {KEY: as_json(whole.run.head)} if whole.run.head.releases or not whole.clients else {}
    clients = {KEYS: {client: as_json(head) for client, head in whole.heads.items()}} if whole.clients else {}
    return own | clients


def _refuse_missing(directory: Path, record: Recorded) -> None:
    path = client_ledger(directory, record.client) if record.client else directory / LEDGER
    if record.head.releases and not path.exists():
        of = f"of client {record.client} " if record.client else ""
        raise UsageError(f"{path} {of}is missing, and {record.file} has recorded its releases. {REMEDY}")


def _recorded(directory: Path) -> Iterator[Recorded]:
    """Raises UsageError for a file that keeps something else under the names."""
    for pattern in _RECORDS:
        for path in sorted(directory.glob(pattern)):
            content = _content(path)
            if path.name == "progress.json":
                content = content.get("progress", content) if _is_as_written(path) else None
            if not isinstance(content, Mapping):
                continue
            name = path.relative_to(directory).as_posix()
            try:
                for client, head in _heads_in(content):
                    yield Recorded(Head.from_json(head), name, client)
            except ValueError as error:
                raise UsageError(f"{path}: {KEY}: {error}. {REMEDY}") from error


def _heads_in(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Raises ValueError for what is under KEYS and names no clients."""
    if content.get(KEY) is not None:
        yield "", content[KEY]
    clients = content.get(KEYS)
    if clients is None:
        return
    if not isinstance(clients, Mapping) or "" in clients:
        raise ValueError("no heads of ledgers by the ids of clients")
    yield from clients.items()


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


def _require_end(directory: Path, whole: Accounts, recorded: list[Recorded]) -> None:
    """Of a run that is done nothing may follow what its result was made of, in no ledger."""
    ends = {record.client: record.head.releases for record in recorded if record.file == "result.json"}
    for client, ledger in {"": whole.run, **whole.clients}.items():
        number = ends.get(client, 0 if ends else ledger.head.releases)
        if number < ledger.head.releases:
            raise UsageError(
                f"{ledger.path}: line {number + 1} was added after the run was done: result.json "
                f"has recorded {number} releases{f' of client {client}' if client else ''}. {REMEDY}"
            )
    privacy = _content(directory / "privacy.json")
    certificate = privacy.get("certificate") if isinstance(privacy, dict) else None
    if isinstance(certificate, dict) and (whole.num_releases or {KEY, KEYS} & privacy.keys()):
        _require_priced(directory, whole, privacy)


def _require_priced(directory: Path, whole: Accounts, privacy: Mapping[str, Any]) -> None:
    """privacy.json holds the segments of what it prices: of disjoint clients those of the one that pays most."""
    told = Counter[tuple[float, float]]()
    for part in privacy["certificate"]["segments"]:
        told[part["sampling_rate"], float(part["noise_multiplier"])] += part["steps"]
    largest = privacy.get("largest_client")
    found = whole.groups(privacy["unit"], disjoint=largest is not None).get(largest or "", ())
    if +told != {(part.sampling_rate, part.noise_multiplier): part.steps for part in found}:
        where = directory / LEDGER if largest is None else client_ledger(directory, largest)
        raise UsageError(
            f"{where}: its {sum(part.steps for part in found)} releases are not the {told.total()} whose price "
            f"privacy.json tells. {REMEDY}"
        )
