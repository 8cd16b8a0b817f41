"""Rows of token ids for a causal language model: what is read, what is predicted, and padding that changes nothing.

Shapes: B rows, T positions of the longest row of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from privlm.data.encoding import pad
from privlm.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_PREDICTED = -100  # as a label


@dataclass(frozen=True)
class TokenRow:
    """One example, T tokens.

    prompt_length: tokens at the beginning that are read and not predicted. Ignored where `labels` are given.
    labels: the token at each position, or NOT_PREDICTED.
    weights: of each position's token in the mean of the example's loss, not negative; None: all equal.
    """

    ids: Sequence[int]
    prompt_length: int = 0
    labels: Sequence[int] | None = None
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class CausalSplit:
    """N examples: what the trainer reads (`len`, `lengths`, `batch`).

    input_ids, labels: N rows, int64 [T_i]; the first token of a row is never predicted.
    weights: the same, float32, or None.
    kept: which of the rows given these are, int64 [N].
    num_truncated: rows that were longer than the limit, skipped ones included.
    num_skipped: rows without a token to predict, after truncation.
    multiple_of: the length of a batch is a multiple of it.
    """

    input_ids: list[np.ndarray]
    labels: list[np.ndarray]
    weights: list[np.ndarray] | None
    kept: np.ndarray
    num_truncated: int
    num_skipped: int
    pad_token_id: int
    side: str
    multiple_of: int = 1

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N]."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    @property
    def num_predicted(self) -> np.ndarray:
        """Tokens of each example that are predicted, int64 [N]."""
        return np.array([np.count_nonzero(row[1:] != NOT_PREDICTED) for row in self.labels], dtype=np.int64)

    def select(self, places: Sequence[int] | np.ndarray) -> CausalSplit:
        """Some of the examples, by their places. What was cut and left out is told of the whole alone."""
        return replace(
            self,
            input_ids=[self.input_ids[place] for place in places],
            labels=[self.labels[place] for place in places],
            weights=None if self.weights is None else [self.weights[place] for place in places],
            kept=self.kept[np.asarray(places, dtype=np.int64)],
            num_truncated=0,
            num_skipped=0,
        )

    def batch(self, indices: Sequence[int] | np.ndarray, device: torch.device | None = None) -> dict[str, Tensor]:
        """input_ids, attention_mask, position_ids, labels, int64 [B, T]; token_weights, float32 [B, T], where given.

        Positions count the row's own tokens, so that a row means the same on either side of its padding.
        """
        padded = partial(pad, side=self.side, multiple_of=self.multiple_of)
        mask = padded([np.ones(len(self.input_ids[i])) for i in indices], 0)
        tensors = {
            "input_ids": padded([self.input_ids[i] for i in indices], self.pad_token_id),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": padded([self.labels[i] for i in indices], NOT_PREDICTED),
        }
        if self.weights is not None:
            tensors["token_weights"] = padded([self.weights[i] for i in indices], 0, dtype=np.float32)
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def causal_split(
    rows: Iterable[TokenRow], *, max_length: int, pad_token_id: int, side: str = "right", multiple_of: int = 1
) -> CausalSplit:
    """Cuts each row after `max_length` tokens, and leaves out those of which no token to predict remains.

    side: left or right, where padding goes. multiple_of: batches are padded to a length that is a multiple of it.

    Raises:
        UsageError: no row is left.
        ValueError: labels or weights of another length than the row, or weights that are negative or not finite.
    """
    assert side in ("left", "right"), side
    input_ids, labels, weights, kept = [], [], [], []
    num_rows = num_truncated = 0
    for number, row in enumerate(rows):
        num_rows += 1
        num_truncated += len(row.ids) > max_length
        label, weight = _labels(row)[:max_length], _weights(row)[:max_length]
        if not np.any((label[1:] != NOT_PREDICTED) & (weight[1:] > 0)):
            continue
        input_ids.append(np.array(row.ids[:max_length], dtype=np.int64))
        labels.append(label)
        weights.append(weight)
        kept.append(number)
    if not kept:
        raise UsageError(
            f"none of {num_rows:,} rows has a token to predict in its first {max_length} tokens: raise model.max_length"
        )
    are_weighted = any(np.any(weight != 1) for weight in weights)
    return CausalSplit(
        input_ids=input_ids,
        labels=labels,
        weights=weights if are_weighted else None,
        kept=np.array(kept, dtype=np.int64),
        num_truncated=num_truncated,
        num_skipped=num_rows - len(kept),
        pad_token_id=pad_token_id,
        side=side,
        multiple_of=multiple_of,
    )


def response_row(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> TokenRow:
    """A prompt that is read and the response that is to be learnt, up to the end-of-text token.

    The two are tokenised apart: where the prompt ends does not depend on what follows it.
    """
    read = tokenizer(prompt)["input_ids"]
    learnt = tokenizer(response, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return TokenRow([*read, *learnt, *end], prompt_length=len(read))


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What to lay under padding: the padding token, else the end-of-text token, else the first of the vocabulary.

    Nothing attends to it and nothing predicts it, so no token has to be added to a model that knows no padding.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def _labels(row: TokenRow) -> np.ndarray:
    if row.labels is None:
        labels = np.array(row.ids, dtype=np.int64)
        labels[: row.prompt_length] = NOT_PREDICTED
        return labels
    if len(row.labels) != len(row.ids):
        raise ValueError(f"{len(row.labels)} labels for a row of {len(row.ids)} tokens")
    return np.array(row.labels, dtype=np.int64)


def _weights(row: TokenRow) -> np.ndarray:
    if row.weights is None:
        return np.ones(len(row.ids), dtype=np.float32)
    if len(row.weights) != len(row.ids):
        raise ValueError(f"{len(row.weights)} weights for a row of {len(row.ids)} tokens")
    weights = np.array(row.weights, dtype=np.float32)
    if not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError("the weights of tokens must be finite and not negative")
    return weights
