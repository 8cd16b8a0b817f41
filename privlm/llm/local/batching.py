"""What scoring and generation share: which rows a model reads together, and rows that it reads piece by piece.

Shapes: B rows, T tokens of a piece with its padding, S tokens read before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from privlm.llm.local.architectures import Model, has_window
from privlm.llm.local.virtual_tokens import keys_and_values, num_virtual_tokens, reader

MIN_SHARED_TOKENS = 16  # a shorter beginning is not worth a pass of its own
MIN_SHARING_ROWS = 4  # fewer rows are better off in fuller batches


@dataclass(frozen=True)
class Limits:
    """Of a batch, in tokens with padding.

    held: whose keys and values are in memory. read: by the model in one pass. outputs: positions that pass the output
    layer; 1024 float32 logits take 200 MB at a vocabulary of 50,000.
    """

    held: int
    read: int
    outputs: int = 1024


def batches(
    limits: Limits, held: Sequence[int], read: Sequence[int], outputs: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in batches within the limits, the longest first; a row that exceeds them is alone.

    held, read, outputs: tokens of each row.
    """
    batch: list[int] = []
    most_held = most_read = num_outputs = 0
    for index in sorted(range(len(held)), key=lambda index: (-read[index], -held[index])):
        most_held, most_read = max(most_held, held[index]), max(most_read, read[index])
        num_outputs += outputs[index] if outputs else 0
        num_rows = len(batch) + 1
        if batch and (
            num_rows * most_held > limits.held or num_rows * most_read > limits.read or num_outputs > limits.outputs
        ):
            yield batch
            batch, most_held, most_read = [], held[index], read[index]
            num_outputs = outputs[index] if outputs else 0
        batch.append(index)
    if batch:
        yield batch


def shared_beginnings(rows: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Divides rows into groups that begin alike, so that many tokens need be read only once.

    Returns (indices, number of tokens that all of them begin with); rows that are in no such group are the last one.
    """
    order = sorted(range(len(rows)), key=lambda index: tuple(rows[index]))
    alike = [num_shared([rows[a], rows[b]]) for a, b in pairwise(order)]

    def divide(start: int, end: int, depth: int) -> list[tuple[list[int], int]]:
        """Groups of a stretch of the sorted rows: all of it, or those of its parts and what these leave."""
        if end - start < MIN_SHARING_ROWS:
            return []
        shared = min(alike[start : end - 1])
        borders = [start, *(i + 1 for i in range(start, end - 1) if alike[i] == shared), end]
        parts = [group for a, b in pairwise(borders) for group in divide(a, b, depth - 1)] if depth else []
        whole = []
        if shared >= MIN_SHARED_TOKENS:
            whole = [(order[start:end], shared)]
            left = _left(order[start:end], parts)
            parts += [(left, shared)] if len(left) >= MIN_SHARING_ROWS else []
        return max(whole, parts, key=lambda groups: sum((len(indices) - 1) * shared for indices, shared in groups))

    groups = divide(0, len(rows), depth=50)
    rest = _left(range(len(rows)), groups)
    return [*groups, (rest, 0)] if rest else groups


def _left(indices: Sequence[int], groups: Sequence[tuple[list[int], int]]) -> list[int]:
    grouped = {index for group, _ in groups for index in group}
    return [index for index in indices if index not in grouped]


def num_shared(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))


def worth_sharing(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, 0 where reading them once saves nothing."""
    shared = num_shared(rows)
    return shared if len(rows) > 1 and shared >= MIN_SHARED_TOKENS else 0


def pad_right(rows: Sequence[Sequence[int]], model: Model) -> Tensor:
    """Token ids int64 [B, T] on the model's device, filled up with 0."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)


@contextmanager
def output_layer_sees(model: Model, row_N: Tensor, column_N: Tensor) -> Iterator[None]:
    """Within it the model's logits are [1, N, vocabulary], of these positions alone.

    The output layer is a fifth of a small model's work, and its logits are most of the memory. Since its input is
    caught, what a model does to its logits afterwards (a scale, a cap) is kept.
    """

    def gather(module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        (hidden_BTd,) = arguments
        return (hidden_BTd[row_N.to(hidden_BTd.device), column_N.to(hidden_BTd.device)].unsqueeze(0),)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


class Rows:
    """Token sequences that a model has read, to be continued: keys and values, and which of them are padding."""

    def __init__(self, cache: Any, mask_BS: Tensor, length_B: Tensor) -> None:
        self.cache = cache
        self.mask_BS = mask_BS
        self.length_B = length_B

    @staticmethod
    def begin(model: Model, tokens: Sequence[int], num_rows: int) -> Rows:
        """Rows that all begin with `tokens`, which are read once, behind the virtual tokens of an adapter."""
        num_virtual = num_virtual_tokens(model)
        mask_BS = torch.ones(1, num_virtual, dtype=torch.long, device=model.device)
        length_B = torch.tensor([num_virtual], device=model.device)
        rows = Rows(keys_and_values(model) if num_virtual else None, mask_BS, length_B)
        if tokens:
            rows.read(model, [tokens])
        rows.keep([0] * num_rows)
        return rows

    @staticmethod
    def of(model: Model, sequences: Sequence[Sequence[int]]) -> tuple[Rows, Tensor]:
        """Rows that have read these sequences, of one token at least, and the logits after them [B, vocabulary]."""
        shared = 0
        # Padding lies between a shared beginning and the rest of a row, where a sliding window would count it.
        if not has_window(model):
            shared = worth_sharing([sequence[:-1] for sequence in sequences])
        rows = Rows.begin(model, sequences[0][:shared], len(sequences))
        return rows, rows.read(model, [sequence[shared:] for sequence in sequences])

    def read(self, model: Model, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Goes on by a piece of one token at least in every row, padded on the left, where it does not stand between a
        row and what follows. Returns the logits after it, float32 [B, vocabulary].
        """
        ids_BT = pad_right([piece[::-1] for piece in pieces], model).flip(1)
        num_rows, width = ids_BT.shape
        padding_B1 = torch.tensor([[width - len(piece)] for piece in pieces], device=model.device)
        column_T = torch.arange(width, device=model.device)
        self.mask_BS = torch.cat([self.mask_BS, (column_T >= padding_B1).long()], dim=1)
        position_BT = self.length_B[:, None] + (column_T - padding_B1).clamp(min=0)
        self.length_B = self.length_B + width - padding_B1[:, 0]
        row_B = torch.arange(num_rows)
        with output_layer_sees(model, row_B, torch.full_like(row_B, width - 1)):
            output = reader(model)(
                input_ids=ids_BT,
                attention_mask=self.mask_BS,
                position_ids=position_BT,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = output.past_key_values
        return output.logits[0].float()

    def finish(self, model: Model, pieces: Sequence[Sequence[int]], row_N: Tensor, column_N: Tensor) -> Tensor:
        """Reads the last piece of every row, padded on the right. Returns the logits at these positions of the pieces,
        float32 [N, vocabulary].
        """
        ids_BT = pad_right(pieces, model)
        with output_layer_sees(model, row_N, column_N):
            if self.cache is None:  # and no mask: a causal model does not look at padding on the right
                return model(input_ids=ids_BT, use_cache=False).logits[0].float()
            output = reader(model)(
                input_ids=ids_BT,
                attention_mask=nn.functional.pad(self.mask_BS, (0, ids_BT.shape[1]), value=1),
                position_ids=self.length_B[:, None] + torch.arange(ids_BT.shape[1], device=model.device),
                past_key_values=self.cache,
            )
        return output.logits[0].float()

    def select(self, rows: Sequence[int]) -> Rows:
        """A copy that holds these rows, repeated or left out as they are named."""
        copied = Rows(copy.deepcopy(self.cache), self.mask_BS, self.length_B)
        copied.keep(rows)
        return copied

    def keep(self, rows: Sequence[int]) -> None:
        """Holds these rows from now on, repeated or left out as they are named."""
        index = torch.tensor(rows)  # on the CPU: layers may lie on several devices
        if self.cache is not None:
            self.cache.batch_select_indices(index)
        self.mask_BS, self.length_B = self.mask_BS[index], self.length_B[index]
