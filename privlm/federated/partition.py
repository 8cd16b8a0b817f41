"""Which rows each client has. Every row is with one client, and a seed gives one partition. No torch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from privlm.errors import UsageError
from privlm.federated.sampling import require_distinct
from privlm.privacy import keyed_random

Rows = npt.NDArray[np.int64]
Parts = dict[str, Rows]
"""Client -> the numbers of its rows, ascending, from 0."""

PARTITIONS = ("iid", "shards", "dirichlet", "by_column", "explicit")
"""Values of federated.partition."""

_MAX_DRAWS = 1000  # of a Dirichlet partition


def partition(
    kind: str,
    labels: Sequence[Hashable] | None,
    columns: Sequence[Any] | None,
    num_rows: int,
    num_clients: int | None,
    seed: int,
    *,
    alpha: float | None = None,
    min_size: int | None = None,
    shards_per_client: int | None = None,
    allocation: Mapping[str, Sequence[int]] | None = None,
) -> Parts:
    """Deals `num_rows` rows out to clients; those that are made are called "0", "1", ...

    Args:
        kind: one of PARTITIONS.
        labels: of each row, [num_rows]; shards and dirichlet need them.
        columns: the client of each row, [num_rows], for by_column.
        num_clients: by_column and explicit count their clients themselves and accept None.
        alpha, min_size: of dirichlet.
        shards_per_client: of shards.
        allocation: client -> its rows, for explicit (`read_allocation`).

    Raises UsageError naming the field for a setting that is absent or cannot be met, for a client without rows, and
    for rows of an allocation that are with no client or with two.
    """
    if num_rows < 1:
        raise UsageError("there are no rows to deal out to clients: give data with at least one row a client")
    if kind == "by_column":
        parts = _by_column(_given(columns, kind, "a column client (data.aliases)"), num_rows)
    elif kind == "explicit":
        parts = _explicit(_given(allocation, kind, "federated.manifest"), num_rows)
    else:
        parts = _made(kind, labels, num_rows, num_clients, seed, alpha, min_size, shards_per_client)
    if num_clients not in (None, len(parts)):
        raise UsageError(
            f"federated.num_clients={num_clients}, but federated.partition={kind} has {len(parts)} clients: "
            "give that number, or null"
        )
    parts = {client: np.sort(rows).astype(np.int64) for client, rows in parts.items()}
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_rows)), "a row is lost or twice"
    assert all(len(rows) for rows in parts.values()), "a client has no rows"
    return parts


def _made(
    kind: str,
    labels: Sequence[Hashable] | None,
    num_rows: int,
    num_clients: int | None,
    seed: int,
    alpha: float | None,
    min_size: int | None,
    shards_per_client: int | None,
) -> Parts:
    clients = _given(num_clients, kind, "federated.num_clients")
    _refuse_more_clients_than_rows(clients, num_rows)
    if kind == "iid":
        return _numbered(iid(num_rows, clients, seed))
    codes_N = _codes(_given(labels, kind, "a column of labels"), num_rows)
    if kind == "shards":
        return _numbered(shards(codes_N, clients, _given(shards_per_client, kind, "federated.shards_per_client"), seed))
    assert kind == "dirichlet", f"no partition is called {kind}"
    alpha, min_size = _given(alpha, kind, "federated.alpha"), _given(min_size, kind, "federated.min_size")
    return _numbered(dirichlet(codes_N, clients, alpha, min_size, seed))


def iid(num_rows: int, num_clients: int, seed: int) -> list[Rows]:
    """Rows dealt at random; sizes differ by one row at most."""
    return np.array_split(keyed_random.generator("partition", seed).permutation(num_rows), num_clients)


def shards(codes_N: Rows, num_clients: int, shards_per_client: int, seed: int) -> list[Rows]:
    """Each client has `shards_per_client` runs of the rows sorted by label (McMahan et al., AISTATS 2017, section 3).

    Rows of one label come in random order. Sizes of clients differ by one row at most, so do the shards of one client.
    """
    num_shards = num_clients * shards_per_client
    if shards_per_client < 1 or num_shards > len(codes_N):
        raise UsageError(
            f"federated.shards_per_client={shards_per_client}: {num_clients} clients would share {len(codes_N)} rows "
            f"in {num_shards} shards; choose at least 1, and no more shards than rows"
        )
    rng = keyed_random.generator("partition", seed)
    mixed = rng.permutation(len(codes_N))
    sorted_N = mixed[np.argsort(codes_N[mixed], kind="stable")]
    owners_S = rng.permutation(np.repeat(np.arange(num_clients), shards_per_client))
    sizes_S = np.zeros(num_shards, dtype=int)
    for client, size in enumerate(_even(len(codes_N), num_clients)):
        sizes_S[owners_S == client] = _even(size, shards_per_client)
    pieces = np.split(sorted_N, np.cumsum(sizes_S)[:-1])
    return [
        np.concatenate([piece for piece, owner in zip(pieces, owners_S, strict=True) if owner == client])
        for client in range(num_clients)
    ]


def _even(total: int, parts: int) -> list[int]:
    """`total` in sizes that differ by one at most, the larger ones first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def dirichlet(codes_N: Rows, num_clients: int, alpha: float, min_size: int, seed: int) -> list[Rows]:
    """The rows of each label dealt by proportions from Dirichlet(alpha, ..., alpha) over the clients.

    A client that has N / num_clients rows or more takes none of the labels that follow, as in Shepherd's released code.
    Drawn again until every client has `min_size` rows, at most 1000 times.
    """
    if not 0 < alpha < np.inf:
        raise UsageError(f"federated.alpha={alpha}: the concentration of labels must be above 0 and finite")
    if min_size < 1 or min_size * num_clients > len(codes_N):
        raise UsageError(
            f"federated.min_size={min_size}: {num_clients} clients share {len(codes_N)} rows; choose between 1 and "
            f"{len(codes_N) // num_clients}"
        )
    for draw in range(_MAX_DRAWS):
        parts = _dirichlet_draw(codes_N, num_clients, alpha, keyed_random.generator("partition", seed, draw))
        if min(map(len, parts)) >= min_size:
            return parts
    raise UsageError(
        f"federated.min_size={min_size}: none of {_MAX_DRAWS} draws with federated.alpha={alpha} gave all "
        f"{num_clients} clients as many rows; lower it, raise federated.alpha, or take fewer clients"
    )


def _dirichlet_draw(codes_N: Rows, num_clients: int, alpha: float, rng: np.random.Generator) -> list[Rows]:
    parts: list[list[Rows]] = [[] for _ in range(num_clients)]
    sizes_C = np.zeros(num_clients, dtype=int)
    for code in np.unique(codes_N):
        rows = rng.permutation(np.flatnonzero(codes_N == code))
        is_open_C = sizes_C < len(codes_N) / num_clients
        weights_C = np.zeros(num_clients)
        weights_C[is_open_C] = rng.dirichlet(np.full(is_open_C.sum(), alpha))  # as one over all is among these
        ends_C = np.cumsum(weights_C)
        ends_C = (ends_C / ends_C[-1] * len(rows)).astype(int)  # the last is exact, for a closed client there too
        for client, piece in enumerate(np.split(rows, ends_C[:-1])):
            parts[client].append(piece)
            sizes_C[client] += len(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _by_column(columns: Sequence[Any], num_rows: int) -> Parts:
    """One client for each value of a column, named after it, in the order of the values."""
    _require_length(columns, num_rows, "clients")
    rows: dict[Any, list[int]] = {}
    for number, value in enumerate(columns):
        if value is None or value == "":
            raise UsageError(f"data.aliases: row {number} names no client")
        rows.setdefault(value, []).append(number)
    require_distinct([str(value) for value in rows])  # 1 and "1" would be
    return {str(value): np.array(rows[value]) for value in _in_order(rows)}


def _explicit(allocation: Mapping[str, Sequence[int]], num_rows: int) -> Parts:
    owner: dict[int, str] = {}
    for client, rows in allocation.items():
        if not len(rows):
            raise UsageError(f"federated.manifest: client {client!r} has no rows; give it some, or leave it out")
        for row in rows:
            if not 0 <= row < num_rows:
                raise UsageError(f"federated.manifest: client {client!r} has row {row} of rows 0 to {num_rows - 1}")
            if row in owner:
                raise UsageError(f"federated.manifest: row {row} is with {owner[row]!r} and with {client!r}")
            owner[row] = client
    if len(owner) < num_rows:
        first = next(row for row in range(num_rows) if row not in owner)
        raise UsageError(
            f"federated.manifest: {num_rows - len(owner)} of {num_rows} rows are with no client, row {first} first"
        )
    return {client: np.array(rows, dtype=np.int64) for client, rows in allocation.items()}


def fingerprint(path: Path) -> str:
    """What names the content of an allocation. Raises UsageError for what `read_allocation` refuses."""
    plain = json.dumps(read_allocation(path), sort_keys=True)
    return f"sha256:{hashlib.sha256(plain.encode()).hexdigest()}"


def read_allocation(path: Path) -> dict[str, list[int]]:
    """The JSON object client -> row numbers of a file. Raises UsageError where it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_distinct_names)
    except OSError as error:
        raise UsageError(f"federated.manifest={path}: the file cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"federated.manifest={path}: the file is no JSON") from error
    if not isinstance(content, dict) or not content or not all(map(_are_row_numbers, content.values())):
        raise UsageError(f'federated.manifest={path}: it must be an object like {{"client": [0, 3, 4]}}')
    return content


def _distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require_distinct([name for name, _ in pairs])
    return dict(pairs)


def _are_row_numbers(rows: Any) -> bool:
    return isinstance(rows, list) and all(type(row) is int for row in rows)  # true is an int, and no row


def manifest(parts: Mapping[str, Rows], labels: Sequence[Hashable] | None) -> dict[str, Any]:
    """What is written of a partition: rows of each client, by category where there are labels, and a digest.

    The digest is that of clients, their order and their row numbers.
    """
    clients: dict[str, Any] = {client: {"rows": len(rows)} for client, rows in parts.items()}
    if labels is not None:
        for client, rows in parts.items():
            counts = Counter(labels[row] for row in rows)
            clients[client]["categories"] = {str(label): counts[label] for label in _in_order(counts)}
    plain = json.dumps([[client, rows.tolist()] for client, rows in parts.items()])
    return {"clients": clients, "digest": hashlib.sha256(plain.encode()).hexdigest()}


def _codes(labels: Sequence[Hashable], num_rows: int) -> Rows:
    """Labels as numbers, in the order of the labels."""
    _require_length(labels, num_rows, "labels")
    if None in (values := set(labels)):
        raise UsageError(f"row {list(labels).index(None)} has no label: fill it in, or choose federated.partition=iid")
    codes = {label: code for code, label in enumerate(_in_order(values))}
    return np.array([codes[label] for label in labels], dtype=np.int64)


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Sorted: numbers by value, before text."""
    return sorted(
        values, key=lambda value: (isinstance(value, str), value if not isinstance(value, str) else 0, str(value))
    )


def _numbered(parts: list[Rows]) -> Parts:
    return {str(number): rows for number, rows in enumerate(parts)}


def _given(value: Any, kind: str, field: str) -> Any:
    if value is None:
        raise UsageError(f"federated.partition={kind} needs {field}")
    return value


def _require_length(values: Sequence[Any], num_rows: int, what: str) -> None:
    if len(values) != num_rows:
        raise ValueError(f"{len(values)} {what} for {num_rows} rows")


def _refuse_more_clients_than_rows(num_clients: int, num_rows: int) -> None:
    if num_clients < 1:
        raise UsageError(f"federated.num_clients={num_clients}: at least one client is needed")
    if num_clients > num_rows:
        raise UsageError(
            f"federated.num_clients={num_clients}: there are {num_rows} rows, and every client needs one; take fewer"
        )
