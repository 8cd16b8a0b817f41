"""Counts parameters from config.json alone, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import NamedTuple

from privlm.adapters.targets import lora_targets
from privlm.config import AdapterConfig, ModelConfig
from privlm.models.architecture import BERT_FAMILY, num_encoder_parameters, read_architecture, weight_shapes
from privlm.models.files import ModelFiles


class ParameterCount(NamedTuple):
    """Numbers of scalar parameters."""

    trainable: int
    total: int


def estimate_parameters(
    model: ModelConfig, files: ModelFiles, adapter: AdapterConfig, num_labels: int
) -> ParameterCount | None:
    """The exact count of the model that would be built, or None for an architecture outside the BERT family.

    Raises:
        UsageError: as `lora_targets`.
    """
    architecture = read_architecture(model, files)
    if architecture.get("model_type") not in BERT_FAMILY:
        return None
    encoder = num_encoder_parameters(architecture)
    hidden = architecture["hidden_size"]
    head = (hidden + 1) * num_labels + (hidden * (hidden + 1) if model.head == "mlp" else 0)
    lora = 0
    if adapter.name == "lora":
        shapes = lora_targets(adapter, architecture["model_type"], weight_shapes(architecture))
        assert adapter.rank is not None
        lora = sum(adapter.rank * (rows + columns) for rows, columns in shapes.values())
    trained_encoder = {"head": 0, "lora": lora, "full": encoder}[adapter.name]
    return ParameterCount(trained_encoder + (head if adapter.train_head else 0), encoder + lora + head)
