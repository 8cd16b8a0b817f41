"""Counts parameters from config.json alone, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any, NamedTuple

from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import lora_targets, rgp_targets
from privlm.models.architecture import BERT_FAMILY, num_encoder_parameters, read_architecture, weight_shapes
from privlm.models.files import ModelFiles
from privlm.models.schema import ModelConfig


class ParameterCount(NamedTuple):
    """Numbers of scalar parameters."""

    trainable: int
    total: int


def estimate_parameters(
    model: ModelConfig, files: ModelFiles, adapter: AdapterConfig, num_labels: int
) -> ParameterCount | None:
    """The exact count of the model that would be built, or None for an architecture outside the BERT family.

    Raises:
        UsageError: as `lora_targets` and `rgp_targets`.
    """
    architecture = read_architecture(model, files)
    if architecture.get("model_type") not in BERT_FAMILY:
        return None
    encoder = num_encoder_parameters(architecture)
    hidden = architecture["hidden_size"]
    head = (hidden + 1) * num_labels + (hidden * (hidden + 1) if model.head == "mlp" else 0)
    trained, added = {"head": (0, 0), "full": (encoder, 0)}.get(adapter.name) or _low_rank(adapter, architecture)
    return ParameterCount(trained + (head if adapter.train_head else 0), encoder + added + head)


def held_in_memory(
    model: ModelConfig, files: ModelFiles, adapter: AdapterConfig, count: ParameterCount
) -> ParameterCount:
    """What a training process holds: `total` values of parameters, `trainable` with a gradient and optimizer states.

    RGP keeps each weight's first value too, and the optimizer steps the weights instead of their factors.

    count: as `estimate_parameters` gave it.
    """
    if adapter.name != "rgp":
        return count
    assert adapter.rank is not None
    shapes = rgp_targets(adapter, _linear_shapes(read_architecture(model, files)))
    weights = sum(rows * columns for rows, columns in shapes.values())
    factors = adapter.rank * sum(rows + columns for rows, columns in shapes.values())
    return ParameterCount(count.trainable - factors + weights, count.total + weights)


def _low_rank(adapter: AdapterConfig, architecture: dict[str, Any]) -> tuple[int, int]:
    """Encoder parameters that LoRA or RGP trains, and how many it adds."""
    all_shapes = weight_shapes(architecture)
    if adapter.name == "lora":
        shapes, others = lora_targets(adapter, architecture["model_type"], all_shapes), 0
    else:
        shapes = rgp_targets(adapter, _linear_shapes(architecture))
        vectors = num_encoder_parameters(architecture) - sum(rows * columns for rows, columns in all_shapes.values())
        others = vectors if adapter.other_params == "train" else 0
    assert adapter.rank is not None
    factors = adapter.rank * sum(rows + columns for rows, columns in shapes.values())
    return factors + others, factors


def _linear_shapes(architecture: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in weight_shapes(architecture).items() if not name.startswith("embeddings.")}
