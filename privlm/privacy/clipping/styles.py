"""From per-record norms to clip factors.

Shapes: L layers, B records. Every style keeps the whole clipped gradient of a record within C:
sum_l (factor_lB * norm_lB)^2 <= C^2.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def flat(norm_LB: Tensor, clipping_norm: float) -> Tensor:
    """min(1, C / norm) of the whole gradient: Abadi et al. (CCS 2016), algorithm 1."""
    norm_B = torch.linalg.vector_norm(norm_LB, dim=0)
    return (clipping_norm / norm_B).clamp(max=1.0).expand_as(norm_LB)


def per_layer(norm_LB: Tensor, clipping_norm: float) -> Tensor:
    """min(1, C_l / norm_l) of each layer, C_l = C / sqrt(L): McMahan et al. (ICLR 2018), per-layer clipping."""
    layer_norm = clipping_norm / math.sqrt(len(norm_LB))
    return (layer_norm / norm_LB).clamp(max=1.0)


def automatic(norm_LB: Tensor, clipping_norm: float) -> Tensor:
    """C / (norm + 0.01): Bu et al. (NeurIPS 2023), AUTO-S; every record is scaled, short gradients up."""
    norm_B = torch.linalg.vector_norm(norm_LB, dim=0)
    return (clipping_norm / (norm_B + 0.01)).expand_as(norm_LB)


STYLES: dict[str, Callable[[Tensor, float], Tensor]] = {"flat": flat, "per_layer": per_layer, "automatic": automatic}
