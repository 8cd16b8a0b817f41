"""Shapes of all weights of a model, from its config.json alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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
    """Exact shapes of a BERT-family encoder without pooler, or of a causal language model of FAMILIES; None for any
    other architecture, or one whose sizes are left to the defaults of its library.

    architecture: as `read_architecture` gives it.
    """
    shapes = FAMILIES.get(architecture.get("model_type", ""))
    try:
        return shapes(architecture) if shapes else None
    except KeyError:
        return None


def cache_width(architecture: dict[str, Any]) -> int:
    """Numbers that the keys and values of one token have, over all layers of a causal language model."""

    heads = _size(architecture, "num_attention_heads", "n_head")
    head = architecture.get("head_dim") or _size(architecture, "hidden_size", "n_embd", "n_embed") // heads
    keys = architecture.get("num_key_value_heads") or heads
    return 2 * _size(architecture, "num_hidden_layers", "n_layer") * head * keys


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


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def _llama(architecture: dict[str, Any]) -> Shapes:
    heads = architecture["num_attention_heads"]
    defaults = {"num_key_value_heads": heads, "head_dim": architecture["hidden_size"] // heads}
    given = {name: value for name, value in architecture.items() if value is not None}
    return _like_llama({**defaults, **given}, ATTENTION if architecture.get("attention_bias") else ())


def _mistral(architecture: dict[str, Any]) -> Shapes:
    head = architecture.get("head_dim") or architecture["hidden_size"] // architecture["num_attention_heads"]
    return _like_llama({**architecture, "head_dim": head})


def _qwen2(architecture: dict[str, Any]) -> Shapes:
    """Biases of queries, keys and values, none of their output."""
    head = architecture["hidden_size"] // architecture["num_attention_heads"]
    return _like_llama({**architecture, "head_dim": head}, ATTENTION[:3])


def _qwen3(architecture: dict[str, Any]) -> Shapes:
    """Norms of queries and keys."""
    shapes = _like_llama(architecture, ATTENTION if architecture.get("attention_bias") else ())
    norms = 2 * architecture["head_dim"] * architecture["num_hidden_layers"]
    return replace(shapes, num_others=shapes.num_others + norms)


def _like_llama(architecture: dict[str, Any], biased: Iterable[str] = ()) -> Shapes:
    """biased: those of the attention's layers that have a bias."""
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    num_layers, heads, head = (architecture[name] for name in ("num_hidden_layers", "num_attention_heads", "head_dim"))
    queries, keys = heads * head, architecture["num_key_value_heads"] * head
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
                 "o_proj": (hidden, queries)}  # fmt: skip
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    named = {f"self_attn.{name}": shape for name, shape in attention.items()}
    named |= {f"mlp.{name}": shape for name, shape in mlp.items()}
    biases = sum(attention[name][0] for name in biased)
    biases += sum(rows for rows, _ in mlp.values()) if architecture.get("mlp_bias") else 0
    table = (architecture["vocab_size"], hidden)
    return Shapes(
        tables={"model.embed_tokens": table},
        linear=_repeated("model.layers", num_layers, named),
        num_others=num_layers * biases + (1 + 2 * num_layers) * hidden,
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", False),
    )


def _repeated(prefix: str, number: int, block: dict[str, Shape]) -> dict[str, Shape]:
    """The layers of all blocks, from those of one."""
    return {f"{prefix}.{i}.{name}": shape for i in range(number) for name, shape in block.items()}


def _bloom(architecture: dict[str, Any]) -> Shapes:
    hidden, num_layers = (
        _size(architecture, "hidden_size", "n_embed"),
        _size(architecture, "n_layer", "num_hidden_layers"),
    )
    table = (architecture["vocab_size"], hidden)
    block = {"self_attention.query_key_value": (3 * hidden, hidden), "self_attention.dense": (hidden, hidden),
             "mlp.dense_h_to_4h": (4 * hidden, hidden), "mlp.dense_4h_to_h": (hidden, 4 * hidden)}  # fmt: skip
    return Shapes(
        tables={"transformer.word_embeddings": table},
        linear=_repeated("transformer.h", num_layers, block),
        num_others=num_layers * _biases(block) + (2 + 2 * num_layers) * 2 * hidden,
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", True),
    )


def _gptj(architecture: dict[str, Any]) -> Shapes:
    """Biases in the MLP and of the logits alone."""
    hidden, num_layers = (
        _size(architecture, "n_embd", "hidden_size"),
        _size(architecture, "n_layer", "num_hidden_layers"),
    )
    inner, table = architecture.get("n_inner") or 4 * hidden, (architecture["vocab_size"], hidden)
    attention = {f"attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    mlp = {"mlp.fc_in": (inner, hidden), "mlp.fc_out": (hidden, inner)}
    return Shapes(
        tables={"transformer.wte": table},
        linear=_repeated("transformer.h", num_layers, attention | mlp),
        num_others=num_layers * _biases(mlp) + (1 + num_layers) * 2 * hidden + table[0],
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", False),
    )


def _gpt_neox(architecture: dict[str, Any]) -> Shapes:
    hidden, inner, num_layers = (
        architecture[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    table = (architecture["vocab_size"], hidden)
    attention = {"attention.query_key_value": (3 * hidden, hidden), "attention.dense": (hidden, hidden)}
    mlp = {"mlp.dense_h_to_4h": (inner, hidden), "mlp.dense_4h_to_h": (hidden, inner)}
    biased = mlp | (attention if architecture.get("attention_bias", True) else {})
    return Shapes(
        tables={"gpt_neox.embed_in": table},
        linear=_repeated("gpt_neox.layers", num_layers, attention | mlp),
        num_others=num_layers * _biases(biased) + (1 + 2 * num_layers) * 2 * hidden,
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", False),
    )


def _opt(architecture: dict[str, Any]) -> Shapes:
    """KeyError for the forms that few of its models have: no biases, embeddings of another width."""
    hidden, inner, num_layers = (architecture[name] for name in ("hidden_size", "ffn_dim", "num_hidden_layers"))
    usual = {"enable_bias": True, "layer_norm_elementwise_affine": True, "do_layer_norm_before": True,
             "_remove_final_layer_norm": False, "word_embed_proj_dim": hidden}  # fmt: skip
    if any(architecture.get(name, value) != value for name, value in usual.items()):
        raise KeyError
    block = {f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    block |= {"fc1": (inner, hidden), "fc2": (hidden, inner)}
    table = (architecture["vocab_size"], architecture["word_embed_proj_dim"])
    return Shapes(
        tables={
            "model.decoder.embed_tokens": table,
            "model.decoder.embed_positions": (architecture["max_position_embeddings"] + 2, hidden),
        },
        linear=_repeated("model.decoder.layers", num_layers, block),
        num_others=num_layers * _biases(block) + (1 + 2 * num_layers) * 2 * hidden,
        conv1d={},
        output={"lm_head": table},
        is_tied=architecture.get("tie_word_embeddings", True),
    )


def _biases(block: dict[str, Shape]) -> int:
    return sum(rows for rows, _ in block.values())


def _size(architecture: dict[str, Any], *names: str) -> int:
    """By the first name that is there: some architectures have their own."""
    for name in names:
        if architecture.get(name) is not None:
            return architecture[name]
    raise KeyError(names[0])


def _gpt2(architecture: dict[str, Any]) -> Shapes:
    """Sizes go by GPT-2's own names or the common ones."""
    hidden, num_layers = (
        _size(architecture, "n_embd", "hidden_size"),
        _size(architecture, "n_layer", "num_hidden_layers"),
    )
    inner = architecture.get("n_inner") or 4 * hidden
    block = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden), "mlp.c_fc": (hidden, inner),
             "mlp.c_proj": (inner, hidden)}  # fmt: skip
    biases = num_layers * sum(columns for _, columns in block.values())
    return Shapes(
        tables={
            "transformer.wte": (architecture["vocab_size"], hidden),
            "transformer.wpe": (_size(architecture, "n_positions", "max_position_embeddings"), hidden),
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
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "bloom": _bloom,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "gpt2": _gpt2,
}
