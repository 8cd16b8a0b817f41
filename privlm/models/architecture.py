"""What config.json tells of an encoder of the BERT family: its shapes and its longest input. No torch."""

from __future__ import annotations

import json
from typing import Any

from ..config import ModelConfig
from ..errors import UsageError
from .files import ModelFiles
from .wordpiece import word_pieces

BERT_FAMILY = ("bert", "roberta", "xlm-roberta")


def read_architecture(config: ModelConfig, files: ModelFiles) -> dict[str, Any]:
    """The content of config.json, or of model.random with the vocabulary that such a model gets."""
    if files.directory is None:
        assert config.random is not None
        return {**config.random, "vocab_size": len(word_pieces()), "pad_token_id": 0}
    path = files.directory / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError(f"{path}: not JSON") from None


def max_tokens(architecture: dict[str, Any]) -> int | None:
    """Tokens of the longest input, special ones included; None if positions are not embedded."""
    positions = architecture.get("max_position_embeddings")
    if positions is None or architecture.get("model_type") in (None, "bert"):
        return positions
    return positions - architecture["pad_token_id"] - 1  # RoBERTa counts positions from pad_token_id + 1


def weight_shapes(architecture: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Module -> weight shape (rows, columns) of every Embedding and Linear of a BERT-family encoder without pooler."""
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings": (architecture["vocab_size"], hidden),
        "embeddings.position_embeddings": (architecture["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings": (architecture["type_vocab_size"], hidden),
    }
    for i in range(architecture["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        shapes |= {f"{layer}.attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
        shapes |= {
            f"{layer}.attention.output.dense": (hidden, hidden),
            f"{layer}.intermediate.dense": (inner, hidden),
            f"{layer}.output.dense": (hidden, inner),
        }
    return shapes


def num_encoder_parameters(architecture: dict[str, Any]) -> int:
    """Exact count for a BERT-family encoder without pooler."""
    shapes = weight_shapes(architecture)
    weights = sum(rows * columns for rows, columns in shapes.values())
    biases = sum(rows for name, (rows, _) in shapes.items() if not name.startswith("embeddings."))
    num_layer_norms = 1 + 2 * architecture["num_hidden_layers"]
    return weights + biases + num_layer_norms * 2 * architecture["hidden_size"]
