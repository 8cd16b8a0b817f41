"""What config.json tells of a model: its architecture and its longest input. No torch."""

from __future__ import annotations

import json
from typing import Any

from privlm.errors import UsageError
from privlm.models.byte_level import byte_pieces
from privlm.models.gguf import dequantized_folder
from privlm.models.locate import ModelFiles
from privlm.models.schema import CausalLMConfig, ModelConfig, is_causal_lm
from privlm.models.wordpiece import word_pieces

ROBERTA_LIKE = ("roberta", "xlm-roberta")
COUNT_FROM_PAD = (
    *ROBERTA_LIKE, "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta-prelayernorm",
    "xlm-roberta-xl", "xmod"
)  # fmt: skip
"""Architectures whose positions begin at pad_token_id + 1."""

SHAPE_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size"
)  # fmt: skip


def read_architecture(config: ModelConfig | CausalLMConfig, files: ModelFiles) -> dict[str, Any]:
    """The content of config.json, or of model.random with the vocabulary that such a model gets.

    Empty for quantised weights that were not unpacked yet.

    Raises:
        UsageError: config.json is not JSON, or lacks a shape of the BERT family.
    """
    if files.directory is None:
        assert config.random is not None
        pieces = byte_pieces() if is_causal_lm(config) else word_pieces()
        return {**config.random, "vocab_size": len(pieces), "pad_token_id": 0}
    path = (dequantized_folder(files) if files.gguf_file else files.directory) / "config.json"
    if files.gguf_file and not path.is_file():
        return {}
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
    positions, kind = architecture.get("max_position_embeddings"), architecture.get("model_type")
    if positions is None or kind not in COUNT_FROM_PAD:
        return positions
    pad = 1 if kind == "mpnet" else architecture.get("pad_token_id", 1)  # MPNet's is fixed
    return positions - pad - 1
