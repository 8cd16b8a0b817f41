"""From per-record norms to clip factors. Every style keeps factor * norm <= clipping_norm."""

from collections.abc import Callable

from torch import Tensor


def flat(norm_B: Tensor, clipping_norm: float) -> Tensor:
    """min(1, C / norm): Abadi et al. (CCS 2016), algorithm 1."""
    return (clipping_norm / norm_B).clamp(max=1.0)


def automatic(norm_B: Tensor, clipping_norm: float) -> Tensor:
    """C / (norm + 0.01): Bu et al. (NeurIPS 2023), AUTO-S; every record is scaled, short gradients up."""
    return clipping_norm / (norm_B + 0.01)


STYLES: dict[str, Callable[[Tensor, float], Tensor]] = {"flat": flat, "automatic": automatic}
