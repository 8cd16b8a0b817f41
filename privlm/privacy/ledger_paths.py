"""Where the ledgers of a run directory lie: its own, those of its clients, and the accounts that --force has put aside.

    privacy_ledger.jsonl              of the run
    privacy_ledger/<client>.jsonl     of each client that adds noise of its own
    privacy_ledger.1.jsonl            put aside by the first --force, with
    privacy_ledger.1/<client>.jsonl   what its clients had

A ledger follows the account of its name that was put aside last, so that this is a part of its chain.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote, unquote

from privlm import files
from privlm.privacy.ledger_chain import START

LEDGER = "privacy_ledger.jsonl"
"""Of a run directory."""
CLIENTS = "privacy_ledger"
"""The folder of a run directory that holds the ledgers of its clients."""

_ACCOUNT = re.compile(r"privacy_ledger(?:\.(\d+))?(?:\.jsonl)?")
_LONGEST = 120  # bytes of a client's name in a file name; most file systems hold 255


def client_ledger(directory: Path, client: str) -> Path:
    """The ledger of a client in a run directory. Different ids have different files, whatever characters they hold."""
    assert client, "a client has a name: the releases of no population are for the units of all"
    return directory / CLIENTS / file_name(client)


def file_name(client: str) -> str:
    """Of the ledger of a client."""
    return f"{client_name(client)}.jsonl"


def client_name(client: str) -> str:
    """A part of a path that is of this client alone: letters, digits, _ and - stand for themselves; a long one ends in
    a digest after ~, which no other has.
    """
    content = client.encode("utf-8", "surrogatepass")  # JSON may hold half a character
    name = quote(content, safe="").replace("~", "%7E").replace(".", "%2E")
    if len(name) > _LONGEST:
        digest = hashlib.sha256(content).hexdigest()
        name = f"{name[: _LONGEST - len(digest) - 1]}~{digest}"
    return name


def is_of_client(path: Path) -> bool:
    """Whether a ledger lies where those of clients do."""
    return _ACCOUNT.fullmatch(path.parent.name) is not None and not path.parent.name.endswith(".jsonl")


def client_of(path: Path) -> str:
    """The id that a file in the folder of clients is named after, of a long one its beginning: for messages."""
    return unquote(path.stem)


def client_ledgers(directory: Path) -> list[Path]:
    """The ledgers of the clients of a run, by file name."""
    return sorted((directory / CLIENTS).glob("*.jsonl"))


def ledgers_in(account: Path) -> list[Path]:
    """The ledgers of an account: the file itself, or those in the folder."""
    return sorted(account.glob("*.jsonl")) if account.is_dir() else [account]


def kept_accounts(directory: Path) -> list[Path]:
    """The accounts, files and folders, that --force has put aside in a run directory, in their order."""
    numbered = [(number, path) for path in directory.glob(f"{CLIENTS}.*") if (number := _number(path)) is not None]
    return [path for _, path in sorted(numbered)]


def put_aside(directory: Path) -> list[Path]:
    """Keeps the account of a run that --force is about to remove, whatever its state; where it then lies."""
    number = 1 + max((_number(path) or 0 for path in kept_accounts(directory)), default=0)
    kept = []
    for path in (directory / LEDGER, directory / CLIENTS):
        if path.exists() and any(ledger.stat().st_size for ledger in ledgers_in(path)):
            kept.append(path.with_name(f"{CLIENTS}.{number}{path.suffix}"))
            path.rename(kept[-1])
    if kept:
        files.sync_directory(directory)
    return kept


def previous_accounts(path: Path) -> list[Path]:
    """The accounts that --force has put aside for a ledger of a run or of a client, in their order.

    Of an account that was put aside itself, those before it; of a ledger with a name of its own, none.
    """
    ledgers = (
        [account / path.name for account in _kept_before(path.parent)] if is_of_client(path) else _kept_before(path)
    )
    return [ledger for ledger in ledgers if ledger.is_file()]


def start_of(path: Path) -> str:
    """What stands before the first line of the ledger `path`: the digest of the account that it follows."""
    accounts = previous_accounts(path)
    return files.sha256_file(accounts[-1]) if accounts else START


def _kept_before(account: Path) -> list[Path]:
    """Those put aside before `account`, which may have been put aside, too."""
    if _ACCOUNT.fullmatch(account.name) is None:
        return []
    own = _number(account)
    return [kept for kept in kept_accounts(account.parent) if own is None or (_number(kept) or 0) < own]


def _number(account: Path) -> int | None:
    """Of an account that was put aside; None for others."""
    found = _ACCOUNT.fullmatch(account.name)
    return None if found is None or found[1] is None else int(found[1])
