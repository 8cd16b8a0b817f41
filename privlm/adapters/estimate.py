"""Counts parameters from config.json alone, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import NamedTuple

from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import lora_targets, require_head, rgp_targets
from privlm.models.architecture import read_architecture
from privlm.models.locate import ModelFiles
from privlm.models.schema import CausalLMConfig, ModelConfig
from privlm.models.shapes import Shapes, shapes_of


class ParameterCount(NamedTuple):
    """Numbers of scalar parameters."""

    trainable: int
    total: int


def estimate_parameters(
    model: ModelConfig | CausalLMConfig, files: ModelFiles, adapter: AdapterConfig, num_labels: int = 0
) -> ParameterCount | None:
    """The exact count of the model that would be built, or None for an architecture that `shapes_of` does not know.

    num_labels: of an encoder's head; a causal language model has none.

    Raises:
        UsageError: as `require_head`, `lora_targets` and `rgp_targets`.
    """
    architecture = read_architecture(model, files)
    shapes = shapes_of(architecture)
    if shapes is None:
        return None
    kind = getattr(model, "head", None)
    require_head(adapter, architecture["model_type"], has_head=kind is not None)
    head = 0 if kind is None else _head(kind, architecture["hidden_size"], num_labels)
    whole = shapes.num_parameters
    trained, added = {"head": (0, 0), "full": (whole, 0)}.get(adapter.name) or _low_rank(
        adapter, architecture["model_type"], shapes
    )
    return ParameterCount(trained + (head if adapter.train_head else 0), whole + added + head)


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


def _low_rank(adapter: AdapterConfig, model_type: str, known: Shapes) -> tuple[int, int]:
    """Parameters of the base that LoRA or RGP trains, and how many it adds."""
    if adapter.name == "lora":
        shapes, others = lora_targets(adapter, model_type, known.all), 0
    else:
        shapes = rgp_targets(adapter, known.linear)
        others = known.num_others if adapter.other_params == "train" else 0
    assert adapter.rank is not None
    factors = adapter.rank * sum(rows + columns for rows, columns in shapes.values())
    return factors + others, factors
