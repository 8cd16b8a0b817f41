"""Copies of the ledgers that clients write at their nodes, so that the server can tell what they have spent.

A ledger holds steps, noise and digests, and nothing of a record. With each reply comes what was written since the last.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from privlm.errors import UsageError
from privlm.privacy.ledger_paths import client_ledger, kept_accounts


class LedgerCopies:
    """run: the run directory of the server."""

    def __init__(self, run: Path) -> None:
        """Raises UsageError where --force has put accounts aside: those of the nodes would go on instead."""
        if kept_accounts(run):
            raise UsageError(
                f"{run} was removed by --force, and the ledgers of its clients lie with their nodes: under "
                "federated.engine=flower a private run is not made anew; give it another seed"
            )
        self._run = run
        self._unheard: set[str] = set()

    def size(self, client: str) -> int:
        """Bytes that the server has."""
        path = client_ledger(self._run, client)
        return path.stat().st_size if path.exists() else 0

    def asked(self, client: str) -> None:
        """It may release from now on what the server has not heard of."""
        self._unheard.add(client)

    def take(self, client: str, start: int, lines: bytes) -> None:
        """Appends what a client has written after the first `start` bytes; readers see whether it follows them."""
        if start != self.size(client):
            raise UsageError(f"{client_ledger(self._run, client)} was written by somebody else while this run goes on")
        self._unheard.discard(client)
        if lines:
            path = client_ledger(self._run, client)
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())

    def tell_unheard(self, note: Callable[[str], None]) -> None:
        """Whose last releases are not counted; tells it once."""
        if self._unheard:
            note(
                f"the ledgers of {', '.join(sorted(self._unheard))} were not heard of again after a round without a "
                "reply: what they released then is counted at their nodes alone, and is at most what was planned"
            )
            self._unheard.clear()


def written_after(path: Path, start: int) -> bytes:
    """The whole lines of a ledger after its first `start` bytes, at the node. Raises UsageError for a shorter one."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < start:
        raise UsageError(
            f"{path} ends before what the server has of it: the folder of this node was removed or replaced, and with "
            "it the account of what was released"
        )
    return whole[start:]
