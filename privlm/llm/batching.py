"""What scoring and generation share: batches by length, and rows that are fed to a model piece by piece.

Shapes: B rows, T tokens of a piece with its padding, S tokens fed before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MAX_OUTPUTS = 1024  # float32 logits of so many positions take 200 MB at a vocabulary of 50,000

Model = Any
"""A causal language model of transformers, or a peft model around one."""


def batches(lengths: Sequence[int], batch_tokens: int, outputs: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_tokens` tokens, padding included, the longest first; one row at least.

    outputs: positions of each that pass the output layer; a batch has at most MAX_OUTPUTS of them.
    """
    batch: list[int] = []
    num_outputs = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        more = outputs[index] if outputs else 0
        if batch and ((len(batch) + 1) * lengths[batch[0]] > batch_tokens or num_outputs + more > MAX_OUTPUTS):
            yield batch
            batch, num_outputs = [], 0
        batch.append(index)
        num_outputs += more
    if batch:
        yield batch


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
    """Token sequences that a model has read, to be continued: keys and values, and which of them are padding.

    Padding is on the left, so that positions and sliding windows of a row do not know of it.
    """

    def __init__(self, cache: Any, mask_BS: Tensor, length_B: Tensor) -> None:
        self.cache = cache
        self.mask_BS = mask_BS
        self.length_B = length_B

    @staticmethod
    def read(model: Model, rows: Sequence[Sequence[int]]) -> tuple[Rows, Tensor]:
        """Reads sequences of one token at least. Returns them with the logits after their last tokens, float32
        [B, vocabulary].
        """
        ids_BT = pad_right([row[::-1] for row in rows], model).flip(1)
        length_B = torch.tensor([len(row) for row in rows], device=model.device)
        num_rows, width = ids_BT.shape
        column_BT = torch.arange(width, device=model.device) - (width - length_B[:, None])
        mask_BT = (column_BT >= 0).long()
        with output_layer_sees(model, torch.arange(num_rows), torch.full((num_rows,), width - 1)):
            output = model(
                input_ids=ids_BT, attention_mask=mask_BT, position_ids=column_BT.clamp(min=0), use_cache=True
            )
        return Rows(output.past_key_values, mask_BT, length_B), output.logits[0].float()

    def select(self, rows: Sequence[int]) -> Rows:
        """A copy that holds these rows, repeated or left out as they are named."""
        index = torch.tensor(rows, device=self.mask_BS.device)
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(index)
        return Rows(cache, self.mask_BS[index], self.length_B[index])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, in place."""
        index = torch.tensor(rows, device=self.mask_BS.device)
        self.cache.batch_select_indices(index)
        self.mask_BS, self.length_B = self.mask_BS[index], self.length_B[index]

    def feed(self, model: Model, ids_BT: Tensor) -> Tensor:
        """Logits of the next piece of every row, [B, T, vocabulary] unless `output_layer_sees` less.

        A piece that is filled up on the right is the last one of its rows.
        """
        num_tokens = ids_BT.shape[1]
        self.mask_BS = nn.functional.pad(self.mask_BS, (0, num_tokens), value=1)
        position_BT = self.length_B[:, None] + torch.arange(num_tokens, device=ids_BT.device)
        output = model(
            input_ids=ids_BT,
            attention_mask=self.mask_BS,
            position_ids=position_BT,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.length_B = self.length_B + num_tokens
        return output.logits
