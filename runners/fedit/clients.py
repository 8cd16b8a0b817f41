"""Which rows are whose, and each client's rows as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm.data.instructions import Instruction
from privlm.errors import UsageError
from privlm.federated.partition import Parts, partition, read_allocation

if TYPE_CHECKING:
    from privlm.data.causal_lm import CausalSplit


def deal(rows: Sequence[Instruction], config: Any) -> Parts:
    """Client -> the places of its rows (privlm.federated.partition), by the column `client` or the category of a row.

    Raises UsageError for a setting that is absent or cannot be met.
    """
    federated = config.federated
    columns = [row.client for row in rows]
    if federated.partition == "by_column" and None in columns:
        raise UsageError(
            "federated.partition=by_column: rows without a client; name their column by data.aliases={COLUMN: client}, "
            "or let them be dealt out: federated.partition=shards federated.num_clients=10"
        )
    return partition(
        federated.partition,
        [row.category or "" for row in rows],
        [column or "" for column in columns],
        len(rows),
        federated.num_clients,
        config.seed,
        alpha=federated.alpha,
        min_size=federated.min_size,
        shards_per_client=federated.shards_per_client,
        allocation=None if federated.manifest is None else read_allocation(Path(federated.manifest)),
    )


def encoded(shares: Parts, train: CausalSplit) -> dict[str, CausalSplit]:
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
