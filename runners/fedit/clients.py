"""Which rows are whose, and each client's rows as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from privlm.data.causal_lm import CausalSplit
from privlm.data.instructions import Instruction
from privlm.errors import UsageError

Shares = Mapping[str, np.ndarray]
"""Client -> the places of its rows, int64, in order."""


def by_column(rows: Sequence[Instruction]) -> dict[str, np.ndarray]:
    """The clients that the data name. Raises UsageError where a row names none."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row.client is None:
            raise UsageError(
                "data: rows without a client; name the column of clients by data.aliases={COLUMN: client}, or let "
                "them be parted another way"
            )
        places.setdefault(row.client, []).append(place)
    return {client: np.array(places[client], dtype=np.int64) for client in sorted(places, key=_by_number)}


def encoded(shares: Shares, train: CausalSplit) -> dict[str, CausalSplit]:
    """Each client's rows of `train`, which holds the encoded rows that `shares` numbers; what the encoder has left out
    is nobody's.

    Raises UsageError for a client that is left without a row.
    """
    place_of = {int(row): place for place, row in enumerate(train.kept)}
    found = {client: train.select([place_of[row] for row in map(int, rows) if row in place_of]) for client, rows in
             shares.items()}  # fmt: skip
    if empty := [client for client, split in found.items() if not len(split)]:
        raise UsageError(
            f"client {', '.join(empty)}: no row has a token to learn in its first model.max_length tokens; raise it, "
            "or give the client rows"
        )
    return found


def _by_number(client: str) -> tuple[int, str]:
    return (int(client), "") if client.isdecimal() else (-1, client)
