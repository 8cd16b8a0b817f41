"""The records of a batch: taking some of them, in any order and as often as wanted.

A batch is what a loss function reads: a tensor, an array, a list with an entry per record, or mappings and tuples of
these. What has a first dimension of B entries holds a row per record; everything else is shared by all records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privlm.errors import UsageError

MASK = "attention_mask"
NOT_PREDICTED = -100  # a label of transformers


def take(batch: Any, positions: Sequence[int], size: int) -> Any:
    """The batch that has the records at `positions` of one of `size` records; a position may come twice."""
    if isinstance(batch, Tensor):
        chosen: Any = torch.tensor(positions, dtype=torch.long, device=batch.device)
        return batch[chosen] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, np.ndarray):
        return batch[list(positions)] if batch.ndim and len(batch) == size else batch
    if isinstance(batch, Mapping):
        return {name: take(value, positions, size) for name, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        return batch
    if any(isinstance(value, (Tensor, np.ndarray, Mapping)) for value in batch):
        return type(batch)(take(value, positions, size) for value in batch)
    return type(batch)(batch[i] for i in positions) if len(batch) == size else batch


def refuse_without_rows(batch: Any, size: int) -> None:
    """Raises UsageError for a batch in which no row of a record is found."""
    if not has_rows(batch, size):
        raise UsageError(
            f"a batch of type {type(batch).__name__} shows no rows of its {size} records, so that nobody can see "
            "whether their losses depend on each other: give tensors with one row per record, or a mapping of them"
        )


def take_padded(batch: Any, positions: Sequence[int], size: int) -> Any:
    """The same, without the columns at either end that none of these records attends to.

    Where every column of `batch` has a record that attends to it, the data pads to the longest of a batch and would
    have padded these records so. A batch without an `attention_mask` [B, T], or with columns of padding alone, is not
    cut, nor one whose labels say something in what would go.
    """
    rows = take(batch, positions, size)
    mask_BT = batch.get(MASK) if isinstance(batch, Mapping) else None
    if not isinstance(mask_BT, Tensor) or mask_BT.ndim != 2 or "decoder_input_ids" in batch:
        return rows
    attended = rows[MASK].bool().any(0).nonzero().flatten()
    if not mask_BT.bool().any(0).all() or len(attended) == 0:
        return rows
    kept = slice(int(attended[0]), int(attended[-1]) + 1)
    labels_BT = rows.get("labels")
    if isinstance(labels_BT, Tensor) and labels_BT.shape == rows[MASK].shape:
        cut_BT = labels_BT.clone()
        cut_BT[:, kept] = NOT_PREDICTED
        if (cut_BT != NOT_PREDICTED).any():
            return rows
    return {name: value[:, kept] if _is_padded(value, rows[MASK]) else value for name, value in rows.items()}


def has_rows(batch: Any, size: int) -> bool:
    """Whether something in the batch has one row for each of `size` records."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch.ndim > 0 and len(batch) == size
    if isinstance(batch, Mapping):
        return any(has_rows(value, size) for value in batch.values())
    if isinstance(batch, (list, tuple)):
        return len(batch) == size or any(has_rows(value, size) for value in batch)
    return False


def _is_padded(value: Any, mask_BT: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == mask_BT.shape
