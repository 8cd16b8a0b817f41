"""A frozen linear layer with bottlenecks before, behind or beside it.

Shapes: d inputs and p outputs of the layer, m of the bottleneck.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from privlm.adapters.bottleneck.config import LEARNED, BottleneckConfig, BottleneckError, MergeError
from privlm.adapters.presets import INPUT, OUTPUT, PARALLEL
from privlm.privacy.clipping import RULES, Instantiated, PerRecordGradient

NO_MERGE = (
    "a bottleneck adapter is not linear, so that no weight can hold it: save it beside its base (save_pretrained), or "
    "take it off again with unload()"
)


class LearnedScale(nn.Module):
    """Multiplies by one number, which trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """y of a frozen layer W, b with branch(z) = s * up(f(down(dropout(z)))), computed in float32, in z's dtype:

        input:     y = W (x + branch(x)) + b
        output:    h = W x + b, y = h + branch(h)
        parallel:  y = W x + b + branch(x)

    Where several adapters are active their branches are added. Autocast does not reach into a branch; where its weights
    were cast (model.double()), their dtype takes the place of float32.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    other_param_names = ("bottleneck_size", "wiring", "scaling", "bottleneck_dropout", "bottleneck_activation")

    def __init__(self, base_layer: nn.Module, name: str, adapter_name: str, config: BottleneckConfig) -> None:
        """name: of the layer in its model.

        Raises BottleneckError for a layer that is none of Linear and Conv1D, or holds quantised weights.
        """
        super().__init__()
        self.base_layer = base_layer
        self.num_inputs, self.num_outputs = _sizes(base_layer, name)
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_scale = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_size: dict[str, int] = {}
        self.wiring: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []  # never any
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.add(name, adapter_name, config)

    def add(self, name: str, adapter_name: str, config: BottleneckConfig) -> None:
        """Another adapter of this layer, beside those there are."""
        wiring, size = config.wiring_of(name), config.bottleneck_size
        entering = self.num_outputs if wiring == OUTPUT else self.num_inputs
        leaving = self.num_inputs if wiring == INPUT else self.num_outputs
        self.wiring[adapter_name], self.bottleneck_size[adapter_name] = wiring, size
        self.bottleneck_down[adapter_name] = nn.Linear(entering, size, bias=False, dtype=torch.float32)
        self.bottleneck_up[adapter_name] = nn.Linear(size, leaving, bias=False, dtype=torch.float32)
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]
        if config.scale == LEARNED:
            self.bottleneck_scale[adapter_name] = LearnedScale()
        else:
            self.scaling[adapter_name] = float(config.scale)  # type: ignore[arg-type]
        self._initialise(adapter_name, config.init)
        self._move(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [..., d] -> [..., p]."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        y = self.base_layer(self._with_branches(INPUT, x, x), *args, **kwargs)
        return self._with_branches(OUTPUT, self._with_branches(PARALLEL, y, x), y)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raises MergeError."""
        raise MergeError(NO_MERGE)

    def unmerge(self) -> None:
        """Raises MergeError."""
        raise MergeError(NO_MERGE)

    def _with_branches(self, wiring: str, total: Tensor, z: Tensor) -> Tensor:
        for name in self.active_adapters:
            if self.wiring.get(name) == wiring:
                total = total + self._branch(name, z)
        return total

    def _branch(self, name: str, z: Tensor) -> Tensor:
        down, up, activation = self.bottleneck_down[name], self.bottleneck_up[name], self.bottleneck_activation[name]
        with torch.autocast(z.device.type, enabled=False):
            entering = self.bottleneck_dropout[name](z.to(self._weights(name)[0].dtype))
            branch = up(activation(down(entering)))
            if name in self.bottleneck_scale:
                return self.bottleneck_scale[name](branch).to(z.dtype)
            return (self.scaling[name] * branch).to(z.dtype)

    def _weights(self, name: str) -> tuple[Tensor, Tensor]:
        down: Any = self.bottleneck_down[name]
        up: Any = self.bottleneck_up[name]
        return down.weight, up.weight

    def _initialise(self, name: str, init: str) -> None:
        down, up = self._weights(name)
        if init == "bert":
            nn.init.normal_(down, std=0.02)
            nn.init.normal_(up, std=0.02)
        else:
            nn.init.kaiming_uniform_(down, a=5**0.5)
            nn.init.zeros_(up)

    def _move(self, name: str) -> None:
        """To the device of the layer, but not to its dtype."""
        base: Any = self.base_layer
        for modules in (self.bottleneck_down, self.bottleneck_up, self.bottleneck_scale):
            if name in modules and not any(parameter.is_meta for parameter in modules[name].parameters()):
                modules[name].to(base.weight.device)


def _sizes(layer: nn.Module, name: str) -> tuple[int, int]:
    if not isinstance(layer, nn.Linear | Conv1D):
        raise BottleneckError(f"wirings: {name} is of the class {type(layer).__name__}, not Linear or Conv1D")
    if not layer.weight.is_floating_point():
        raise BottleneckError(
            f"wirings: {name} holds quantised weights ({str(layer.weight.dtype).removeprefix('torch.')}); load the "
            "base in float32, bfloat16 or float16"
        )
    if isinstance(layer, Conv1D):
        num_inputs, num_outputs = layer.weight.shape
        return num_inputs, num_outputs
    return layer.in_features, layer.out_features


def _learned_scale(module: LearnedScale, x: Tensor, grad: Tensor) -> PerRecordGradient:
    """The exact rule of clipping by records: sum of x * grad over what belongs to a record, [B]."""
    return Instantiated((x.float() * grad.float()).flatten(1).sum(1))


RULES[LearnedScale.forward] = {"weight": _learned_scale}
