"""What a recorded forward pass leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


@dataclass(frozen=True)
class Call:
    """One use of a layer in the forward pass.

    version: of its input, which must not change afterwards. is_copy: of rows that all records share, one for each.
    """

    module: nn.Module
    input: Tensor
    output_edge: GradientEdge
    version: int = 0
    is_copy: bool = False

    @property
    def is_changed(self) -> bool:
        return version(self.input) != self.version


@dataclass(frozen=True)
class Output:
    """A tensor that a module around something without rows of its own returned."""

    module: nn.Module
    edge: GradientEdge


def version(x: Tensor) -> int:
    """How often the memory of `x` was changed in place; views and detached copies share the count."""
    return 0 if x.is_inference() else x._version
