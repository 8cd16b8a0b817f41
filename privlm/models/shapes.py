"""Shapes of all weights of a model, from its config.json alone. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int]


@dataclass(frozen=True)
class Shapes:
    """Weights of a model by module name, as (rows, columns).

    tables: of Embedding modules. linear: of Linear layers, output: of the one that gives logits, conv1d: of GPT-2's
    Conv1D layers.
    num_others: scalars of all biases and norms.
    is_tied: the output has no weight of its own.
    """

    tables: dict[str, Shape]
    linear: dict[str, Shape]
    num_others: int
    conv1d: dict[str, Shape]
    output: dict[str, Shape]
    is_tied: bool = False

    @property
    def all(self) -> dict[str, Shape]:
        return {**self.tables, **self.linear, **self.conv1d, **self.output}

    @property
    def num_parameters(self) -> int:
        owned = {**self.tables, **self.linear, **self.conv1d, **({} if self.is_tied else self.output)}
        return self.num_others + sum(rows * columns for rows, columns in owned.values())


def shapes_of(architecture: dict[str, Any]) -> Shapes | None:
    """Exact shapes of a BERT-family encoder without pooler, a Llama or a GPT-2; None for any other architecture, or one
    whose sizes are left to the defaults of its library.

    architecture: as `read_architecture` gives it.
    """
    shapes = FAMILIES.get(architecture.get("model_type", ""))
    try:
        return shapes(architecture) if shapes else None
    except KeyError:
        return None


def cache_width(architecture: dict[str, Any]) -> int:
    """Numbers that the keys and values of one token have, over all layers of a causal language model."""

    def size(*names: str) -> int:
        return next(architecture[name] for name in names if architecture.get(name) is not None)

    heads = size("num_attention_heads", "n_head", "num_heads")
    head = architecture.get("head_dim") or size("hidden_size", "n_embd") // heads
    keys = architecture.get("num_key_value_heads") or heads
    return 2 * size("num_hidden_layers", "n_layer", "num_layers") * head * keys


def _bert(architecture: dict[str, Any]) -> Shapes:
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    num_layers = architecture["num_hidden_layers"]
    linear: dict[str, Shape] = {}
    for i in range(num_layers):
        layer = f"encoder.layer.{i}"
        linear |= {f"{layer}.attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
        linear |= {
            f"{layer}.attention.output.dense": (hidden, hidden),
            f"{layer}.intermediate.dense": (inner, hidden),
            f"{layer}.output.dense": (hidden, inner),
        }
    biases = sum(rows for rows, _ in linear.values())
    return Shapes(
        tables={
            "embeddings.word_embeddings": (architecture["vocab_size"], hidden),
            "embeddings.position_embeddings": (architecture["max_position_embeddings"], hidden),
            "embeddings.token_type_embeddings": (architecture["type_vocab_size"], hidden),
        },
        linear=linear,
        num_others=biases + (1 + 2 * num_layers) * 2 * hidden,
        conv1d={},
        output={},
    )


def _llama(architecture: dict[str, Any]) -> Shapes:
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    num_layers, heads = architecture["num_hidden_layers"], architecture["num_attention_heads"]
    head = architecture.get("head_dim") or hidden // heads
    queries, keys = heads * head, (architecture.get("num_key_value_heads") or heads) * head
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
                 "o_proj": (hidden, queries)}  # fmt: skip
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    linear: dict[str, Shape] = {}
    for i in range(num_layers):
        linear |= {f"model.layers.{i}.self_attn.{name}": shape for name, shape in attention.items()}
        linear |= {f"model.layers.{i}.mlp.{name}": shape for name, shape in mlp.items()}
    biased = (attention if architecture.get("attention_bias") else {}) | (mlp if architecture.get("mlp_bias") else {})
    biases = num_layers * sum(rows for rows, _ in biased.values())
    table = (architecture["vocab_size"], hidden)
    return Shapes(
        tables={"model.embed_tokens": table},
        linear=linear,
        num_others=biases + (1 + 2 * num_layers) * hidden,
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", False),
    )


def _gpt2(architecture: dict[str, Any]) -> Shapes:
    """Sizes go by GPT-2's own names or the common ones."""

    def size(name: str, common: str) -> int:
        return architecture[name] if name in architecture else architecture[common]

    hidden, num_layers = size("n_embd", "hidden_size"), size("n_layer", "num_hidden_layers")
    inner = architecture.get("n_inner") or 4 * hidden
    block = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (hidden, inner),
             "mlp.c_proj": (inner, hidden)}  # fmt: skip
    biases = num_layers * sum(columns for _, columns in block.values())
    return Shapes(
        tables={
            "transformer.wte": (architecture["vocab_size"], hidden),
            "transformer.wpe": (size("n_positions", "max_position_embeddings"), hidden),
        },
        linear={},
        num_others=biases + (1 + 2 * num_layers) * 2 * hidden,
        conv1d={f"transformer.h.{i}.{name}": shape for i in range(num_layers) for name, shape in block.items()},
        output={"lm_head": (architecture["vocab_size"], hidden)},
        is_tied=architecture.get("tie_word_embeddings", True),
    )


FAMILIES: dict[str, Callable[[dict[str, Any]], Shapes]] = {
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "llama": _llama,
    "gpt2": _gpt2,
}
