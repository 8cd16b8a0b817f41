"""What config.json tells of an encoder of the BERT family: its shapes and its longest input. No torch."""

from __future__ import annotations

import json
from typing import Any

from privlm.errors import UsageError
from privlm.models.files import ModelFiles
from privlm.models.schema import ModelConfig
from privlm.models.wordpiece import word_pieces

ROBERTA_LIKE = ("roberta", "xlm-roberta")  # these count positions from pad_token_id + 1
BERT_FAMILY = ("bert", *ROBERTA_LIKE)
SHAPE_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size"
)  # fmt: skip


def read_architecture(config: ModelConfig, files: ModelFiles) -> dict[str, Any]:
    """The content of config.json, or of model.random with the vocabulary that such a model gets.

    Raises:
        UsageError: config.json is not JSON, or lacks a shape of the BERT family.
    """
    if files.directory is None:
        assert config.random is not None
        return {**config.random, "vocab_size": len(word_pieces()), "pad_token_id": 0}
    path = files.directory / "config.json"
    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise UsageError(f"{path}: not JSON") from None
    required = {"bert": SHAPE_FIELDS, **dict.fromkeys(ROBERTA_LIKE, (*SHAPE_FIELDS, "pad_token_id"))}
    missing = [field for field in required.get(architecture.get("model_type"), ()) if field not in architecture]
    if missing:
        raise UsageError(f"{path}: no {', '.join(missing)}")
    return architecture


def max_tokens(architecture: dict[str, Any]) -> int | None:
    """Tokens of the longest input, special ones included; None where config.json sets no limit."""
    positions = architecture.get("max_position_embeddings")
    if architecture.get("model_type") in ROBERTA_LIKE:
        return positions - architecture["pad_token_id"] - 1
    return positions


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
