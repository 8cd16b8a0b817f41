"""What a client keeps from round to round: its own parts of the model, control variates, an optimizer's state.

Each is kept with the round that it was made in, so that a federation which goes on from an earlier round finds the
state of that round and not a later one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from privlm import files
from privlm.federated import wire
from privlm.federated.aggregate import Tensors, UnusableReply
from privlm.privacy.ledger_paths import client_name

KEPT = 2
"""Rounds that a federation may go back to (trainer.keep_checkpoints may say more)."""


class ClientStore(Protocol):
    """Where clients keep their own."""

    def read(self, client: str, before: int) -> Tensors:
        """The newest state of a round before this one; empty where there is none."""
        ...

    def write(self, client: str, round_: int, tensors: Tensors) -> None:
        """Keeps the state that a round has left."""
        ...

    def has(self, client: str, round_: int) -> bool:
        """Whether there is a state of this very round."""
        ...


class StoreInMemory:
    """For a federation of one process that leaves nothing behind."""

    def __init__(self) -> None:
        self._states: dict[str, dict[int, Tensors]] = {}

    def read(self, client: str, before: int) -> Tensors:
        states = self._states.get(client, {})
        return dict(states[max(rounds)]) if (rounds := [round_ for round_ in states if round_ < before]) else {}

    def write(self, client: str, round_: int, tensors: Tensors) -> None:
        states = self._states.setdefault(client, {})
        states[round_] = tensors
        for old in _superseded(list(states), round_, KEPT):
            del states[old]

    def has(self, client: str, round_: int) -> bool:
        return round_ in self._states.get(client, {})


class StoreOnDisk:
    """One folder a client, one file a round, which any process may read; one process at a time writes a client's."""

    def __init__(self, folder: Path, keep: int = KEPT) -> None:
        self.folder = folder
        self.keep = max(keep, KEPT)

    def read(self, client: str, before: int) -> Tensors:
        rounds = [round_ for round_ in self._rounds(client) if round_ < before]
        if not rounds:
            return {}
        path = self.path(client, max(rounds))
        try:
            return wire.unpack(path.read_bytes())[0]
        except UnusableReply as damage:
            raise files.DamagedFileError(path, str(damage)) from damage

    def write(self, client: str, round_: int, tensors: Tensors) -> None:
        path = self.path(client, round_)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = wire.pack(tensors, {"client": client, "round": round_})
        files.write_bytes(path, content)
        for old in _superseded(self._rounds(client), round_, self.keep):
            self.path(client, old).unlink(missing_ok=True)

    def has(self, client: str, round_: int) -> bool:
        return self.path(client, round_).exists()

    def newest(self, clients: Iterable[str]) -> list[Path]:
        """The files that hold the last states, of those clients that have one."""
        last = {client: max(rounds) for client in clients if (rounds := self._rounds(client))}
        return [self.path(client, round_) for client, round_ in last.items()]

    def path(self, client: str, round_: int) -> Path:
        return self.folder / client_name(client) / f"round-{round_}.safetensors"

    def _rounds(self, client: str) -> list[int]:
        names = [path.stem for path in (self.folder / client_name(client)).glob("round-*.safetensors")]
        return [int(name.removeprefix("round-")) for name in names]


def _superseded(rounds: list[int], newest: int, keep: int) -> list[int]:
    """States that nobody goes back to: later ones, of a try that was given up, and all but the newest of the old."""
    old = sorted(round_ for round_ in rounds if round_ <= newest - keep)
    return old[:-1] + [round_ for round_ in rounds if round_ > newest]
