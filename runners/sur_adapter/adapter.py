"""The SUR adapter: between the frozen text encoder and the frozen UNet, states of a narrative prompt become such that
the UNet reads them like those of a prompt by keywords (arXiv 2305.05189).

Legend: B prompts, L tokens, d width of the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privlm.errors import UsageError


@dataclass(frozen=True)
class Adapted:
    """states: what the UNet is told. encoded: what the adapter's own encoder makes of the prompt, which is compared
    with a language model. change: before eta scales it. Each [B, L, d].
    """

    states: Tensor
    encoded: Tensor
    change: Tensor


class SelfAttention(nn.Module):
    """Heads over the positions of each prompt, with a linear layer each for queries, keys, values and the output."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):  # as torch draws the three as one matrix [3d, d]
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x_BLd: Tensor) -> Tensor:
        query, key, value = (self._heads(layer(x_BLd)) for layer in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        read_BHLe = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out(read_BHLe.transpose(1, 2).flatten(2))

    def _heads(self, x_BLd: Tensor) -> Tensor:
        return x_BLd.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention and a feed-forward part, each followed by its norm (Vaswani et al., arXiv 1706.03762): what torch's
    TransformerEncoderLayer computes, made of layers whose gradients can be bounded record by record.
    """

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))

    def forward(self, x_BLd: Tensor) -> Tensor:
        x_BLd = self.norm1(x_BLd + self.dropout1(self.attention(x_BLd)))
        inner_BLf = self.dropout(F.relu(self.linear1(x_BLd)))
        return self.norm2(x_BLd + self.dropout2(self.linear2(inner_BLf)))


class SurAdapter(nn.Module):
    """Section 3 of the paper, with the repairs and the variants that README.md lists.

    width: of the text encoder's states. mix: paper, eta Z + (1 - eta) x; residual, x + eta Z; both leave a prompt of
    eta 0 as it is. is_released: as the released code computes: attention runs across the prompts of a batch, a layer is
    never used, and the last bias is random.

    Raises UsageError where the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int = 2,
        heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.1,
        mix: str = "paper",
        eta: float = 0.1,
        is_released: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"adapter.heads={heads} does not divide the width of the text encoder, {width}")
        self.width, self.mix, self.eta, self.is_released = width, mix, eta, is_released
        self.encoder = nn.Sequential(*(EncoderLayer(width, heads, feedforward, dropout) for _ in range(depth)))
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        if is_released:
            self.unused_value = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        if not is_released:
            nn.init.zeros_(self.out.bias)

    @classmethod
    def of(cls, config: Any, width: int) -> SurAdapter:
        """config: a SurAdapterConfig, or any object with its fields."""
        names = ("depth", "heads", "feedforward", "dropout", "mix", "eta")
        settings = {name: getattr(config, name) for name in names}
        return cls(width, **settings, is_released=config.compat == "released")

    def forward(self, x_BLd: Tensor, eta: float | None = None) -> Adapted:
        """x: last hidden states of the text encoder. eta: in place of the adapter's own."""
        encoded_BLd = self._encode(x_BLd)
        read_BLd = F.scaled_dot_product_attention(self.query(encoded_BLd), self.key(x_BLd), x_BLd) + x_BLd
        change_BLd = self.out(self.mlp(read_BLd) + read_BLd)
        eta = self.eta if eta is None else eta
        kept = x_BLd if self.mix == "residual" else (1 - eta) * x_BLd
        return Adapted(kept + eta * change_BLd, encoded_BLd, change_BLd)

    def _encode(self, x_BLd: Tensor) -> Tensor:
        if self.is_released:
            return self.encoder(x_BLd.transpose(0, 1)).transpose(0, 1)
        return self.encoder(x_BLd)

    def steer(
        self, states: Tensor, empty: Tensor, *, eta: float | None = None, both: bool = False
    ) -> tuple[Tensor, ...]:
        """What a pipeline with guidance is given for the prompts and for their negative ones.

        states, empty: [B, L, d], of the prompts and of the negative prompts. both: the adapter changes the negative
        ones too, in one batch with their prompt, as the released code does.
        """
        if not both:
            return self(states, eta).states, empty
        pairs = [self(torch.stack(pair), eta).states for pair in zip(empty, states, strict=True)]
        negative, positive = torch.stack(pairs, dim=1)
        return positive, negative
