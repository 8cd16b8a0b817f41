"""Counts parameters from config.json alone, for `--dry-run`. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from privlm.adapters.schema import LEARNED, AdapterConfig
from privlm.adapters.targets import (
    Layer,
    bottlenecks,
    fused_layers,
    ia3_targets,
    lora_targets,
    require_trainable,
    require_virtual_tokens,
    rgp_targets,
)
from privlm.models.architecture import read_architecture
from privlm.models.locate import ModelFiles, locate_model
from privlm.models.quantized import require_quantizable
from privlm.models.schema import CausalLMConfig, ModelConfig, is_causal_lm
from privlm.models.shapes import Shapes, cache_width, shapes_of


class ParameterCount(NamedTuple):
    """Numbers of scalar parameters."""

    trainable: int
    total: int


class Known(NamedTuple):
    """What is known of a model that is not built."""

    architecture: dict[str, Any]
    shapes: Shapes
    is_causal_lm: bool

    @property
    def model_type(self) -> str:
        return self.architecture["model_type"]

    @property
    def layers(self) -> dict[str, Layer]:
        """Its linear layers."""
        linear = {**self.shapes.linear, **self.shapes.output}
        turned = {name: Layer(inputs, outputs) for name, (inputs, outputs) in self.shapes.conv1d.items()}
        return {**{name: Layer(inputs, outputs) for name, (outputs, inputs) in linear.items()}, **turned}


def estimate_parameters(
    model: ModelConfig | CausalLMConfig, files: ModelFiles, adapter: AdapterConfig, num_labels: int = 0
) -> ParameterCount | None:
    """The exact count of the model that would be built, or None for an architecture that `shapes_of` does not know.

    num_labels: of an encoder's head; a causal language model has none.

    Raises:
        UsageError: as privlm.adapters.targets.
    """
    architecture = read_architecture(model, files)
    shapes = shapes_of(architecture)
    if shapes is None:
        return None
    kind = getattr(model, "head", None)
    require_trainable(adapter, architecture["model_type"], has_head=kind is not None)
    head = 0 if kind is None else _head(kind, architecture["hidden_size"], num_labels)
    trained, added = ADDED[adapter.name](adapter, Known(architecture, shapes, is_causal_lm(model)))
    return ParameterCount(trained + (head if adapter.train_head else 0), shapes.num_parameters + added + head)


def trained_model(config: Any) -> dict[str, str]:
    """The fingerprint of the weights that config.model names, for the `inputs` of a task that puts an adapter on them.

    Raises UsageError where they are not at hand, or config.adapter does not fit them: before anything is written.
    """
    require_quantizable(config.model, config.adapter.name)
    files = locate_model(config.model)
    estimate_parameters(config.model, files, config.adapter)
    return {"model": files.fingerprint}


def held_in_memory(
    model: ModelConfig | CausalLMConfig, files: ModelFiles, adapter: AdapterConfig, count: ParameterCount
) -> ParameterCount:
    """What a training process holds: `total` values of parameters, `trainable` with a gradient and optimizer states.

    RGP keeps each weight's first value too, and the optimizer steps the weights instead of their factors.

    count: as `estimate_parameters` gave it.
    """
    if adapter.name != "rgp":
        return count
    known = shapes_of(read_architecture(model, files))
    assert known is not None
    assert adapter.rank is not None
    shapes = rgp_targets(adapter, known.linear)
    weights = sum(rows * columns for rows, columns in shapes.values())
    factors = adapter.rank * sum(rows + columns for rows, columns in shapes.values())
    return ParameterCount(count.trainable - factors + weights, count.total + weights)


def _head(kind: str, hidden: int, num_labels: int) -> int:
    return (hidden + 1) * num_labels + (hidden * (hidden + 1) if kind == "mlp" else 0)


Added = tuple[int, int]
"""Parameters beside a head that train, and how many of them the base does not have."""


def _nothing(adapter: AdapterConfig, known: Known) -> Added:
    return 0, 0


def _everything(adapter: AdapterConfig, known: Known) -> Added:
    return known.shapes.num_parameters, 0


def _factors(adapter: AdapterConfig, known: Known) -> Added:
    shapes = rgp_targets(adapter, known.shapes.linear)
    assert adapter.rank is not None
    factors = adapter.rank * sum(rows + columns for rows, columns in shapes.values())
    return factors + (known.shapes.num_others if adapter.other_params == "train" else 0), factors


def _pairs(adapter: AdapterConfig, known: Known) -> Added:
    """r (d + p) each; two pairs of r (d + p / 3) for a fused layer; p more under DoRA."""
    is_dora = adapter.name == "dora"
    layers = known.layers
    weights = {name: shape for name, shape in known.shapes.all.items() if name in layers or not is_dora}
    chosen = lora_targets(adapter, known.model_type, weights)
    fused = fused_layers(adapter, known.model_type, chosen)
    assert adapter.rank is not None
    number = adapter.rank * sum(rows + columns for name, (rows, columns) in chosen.items() if name not in fused)
    number += sum(2 * adapter.rank * (layers[name].inputs + layers[name].outputs // 3) for name in fused)
    number += sum(layers[name].outputs for name in chosen) if is_dora else 0
    return number, number


def _scales(adapter: AdapterConfig, known: Known) -> Added:
    leaving, entering = ia3_targets(adapter, known.model_type, known.layers)
    number = sum(layer.outputs for layer in leaving.values()) + sum(layer.inputs for layer in entering.values())
    return number, number


def _bottlenecks(adapter: AdapterConfig, known: Known) -> Added:
    """m (a + c) each, and a scale where it is learnt."""
    placed = bottlenecks(adapter, known.model_type, known.layers).values()
    assert adapter.bottleneck_size is not None
    number = sum(adapter.bottleneck_size * (each.inputs + each.outputs) for each in placed)
    number += len(placed) if adapter.scale == LEARNED else 0
    return number, number


def _virtual_tokens(adapter: AdapterConfig, known: Known) -> Added:
    """A row of the table each; or keys and values of each layer."""
    number = require_virtual_tokens(adapter, known.model_type, is_causal_lm=known.is_causal_lm)
    (_, hidden), *_ = known.shapes.tables.values()
    number *= hidden if adapter.name == "prompt" else cache_width(known.architecture)
    return number, number


ADDED: dict[str, Callable[[AdapterConfig, Known], Added]] = {
    "none": _nothing,
    "head": _nothing,
    "full": _everything,
    "rgp": _factors,
    **dict.fromkeys(("lora", "lora_emnlp", "dora"), _pairs),
    "ia3": _scales,
    **dict.fromkeys(("adapter_h", "adapter_p", "parallel", "scaled_parallel"), _bottlenecks),
    **dict.fromkeys(("prefix", "prompt"), _virtual_tokens),
}
"""Adapter -> what counts it."""
