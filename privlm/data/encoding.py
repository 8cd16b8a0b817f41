"""Token ids of a split, padded batch by batch. The texts are not kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from privlm.data.text_classification import Split

CHUNK = 10_000  # texts tokenised at a time; bounds the memory of the tokenizer's own records


@dataclass(frozen=True)
class EncodedSplit:
    """N tokenised examples: what the trainer reads (`len`, `lengths`, `batch`).

    input_ids: N rows, int32 [T_i].
    token_type_ids: the same, where the tokenizer tells the two texts of a pair apart by them.
    labels: class ids, int64 [N].
    lengths: tokens of each example, int64 [N].
    num_truncated: examples longer than the limit.
    """

    input_ids: list[np.ndarray]
    token_type_ids: list[np.ndarray] | None
    labels: np.ndarray
    lengths: np.ndarray
    num_truncated: int
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int] | np.ndarray, device: torch.device | None = None) -> dict[str, Tensor]:
        """Examples as int64 tensors, padded to the longest of them: input_ids, attention_mask [B, T], labels [B]."""
        tensors = {
            "input_ids": pad([self.input_ids[i] for i in indices], self.pad_token_id),
            "attention_mask": pad([np.ones(self.lengths[i]) for i in indices], 0),
            "labels": torch.from_numpy(self.labels[indices]),
        }
        if self.token_type_ids is not None:
            tensors["token_type_ids"] = pad([self.token_type_ids[i] for i in indices], 0)
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def tokenize(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedSplit:
    """Tokenises one text, or a pair, per example. Longer ones are truncated, of a pair the longer text first.

    Args:
        max_length: tokens per example at most, special tokens included.
    """
    is_pair = len(split.texts) == 2 and "token_type_ids" in tokenizer.model_input_names
    input_ids: list[np.ndarray] = []
    token_type_ids: list[np.ndarray] = []
    num_truncated = 0
    for start in range(0, len(split), CHUNK):
        texts = (column[start : start + CHUNK] for column in split.texts)
        encoded = tokenizer(*texts, truncation="longest_first", max_length=max_length, padding=False)
        input_ids += [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
        if is_pair:
            token_type_ids += [np.array(ids, dtype=np.int32) for ids in encoded["token_type_ids"]]
        num_truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return EncodedSplit(
        input_ids=input_ids,
        token_type_ids=token_type_ids if is_pair else None,
        labels=split.labels,
        lengths=np.array([len(ids) for ids in input_ids], dtype=np.int64),
        num_truncated=num_truncated,
        pad_token_id=tokenizer.pad_token_id,
    )


def pad(
    rows: list[np.ndarray], value: int, side: str = "right", dtype: type = np.int64, multiple_of: int = 1
) -> Tensor:
    """Rows [T_i] as one tensor [B, T] of the longest, filled up with `value` on the left or the right; T is raised to a
    multiple of `multiple_of`.
    """
    length = -(-max(map(len, rows)) // multiple_of) * multiple_of
    padded: np.ndarray = np.full((len(rows), length), value, dtype=dtype)
    for line, row in zip(padded, rows, strict=True):
        line[len(line) - len(row) if side == "left" else 0 :][: len(row)] = row
    return torch.from_numpy(padded)
