"""LoRA for a layer that gives queries, keys and values at once: pairs of their own for its first and its last third.

Shapes: d inputs, p outputs, r rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OuterThirds(nn.Module):
    """[..., 2r] -> [..., p]: the first r inputs give the first third of the outputs, the others the last, and nothing
    gives the one between.
    """

    def __init__(self, rank: int, num_outputs: int) -> None:
        super().__init__()
        assert num_outputs % 3 == 0
        self.thirds = nn.Parameter(torch.zeros(2, num_outputs // 3, rank))

    @property
    def weight(self) -> Tensor:
        """As one matrix [p, 2r], for whoever merges it."""
        first, last = self.thirds
        between = torch.zeros_like(first)
        left, right = torch.cat([first, between, between]), torch.cat([between, between, last])
        return torch.cat([left, right], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        first, last = x.chunk(2, dim=-1)
        queries, values = F.linear(first, self.thirds[0]), F.linear(last, self.thirds[1])
        return torch.cat([queries, torch.zeros_like(queries), values], dim=-1)


def adapt_thirds(layer: Any, adapter_name: str = "default") -> None:
    """Gives a LoRA layer of peft two pairs in place of one: as many parameters, 2 r (d + p / 3), where p = 3 d.

    Only the model that is built like this one reads what is saved of it; in the merged weights it is for anyone.
    """
    pair, old = layer.lora_A[adapter_name], layer.lora_B[adapter_name].weight
    down = nn.Linear(pair.in_features, 2 * pair.out_features, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)  # as peft begins
    layer.lora_A[adapter_name] = down.to(pair.weight)
    layer.lora_B[adapter_name] = OuterThirds(pair.out_features, old.shape[0]).to(old)
