"""Peak memory of one training process, estimated from counts before anything is built. No torch.

    peak = libraries + 4 P + 4 (1 + o) P_trained + activations

P: parameters; P_trained: those that train, each with its gradient and o optimizer states. All are float32, under bf16
autocast too, unless the weights themselves are of two bytes; then 2 stands for 4. libraries: what torch, transformers,
peft, dp-accounting and those of the report hold, measured on a CPU with torch 2.13.
Measured runs lay within 13 % of the estimate. What an allocator keeps of freed memory is not in it: glibc's, on a CPU,
held 100 MB after the first micro-batches of a tiny model, whose many forward passes fragment its heap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from privlm.adapters.estimate import ParameterCount

LIBRARIES = 560_000_000  # bytes
FLOAT = 4  # bytes


def peak_memory(parameters: ParameterCount, trainer: Any, activations: int, value_bytes: int = FLOAT) -> int:
    """Bytes of one process at its peak.

    trainer: a TrainerConfig (privlm.training.schema), or any object with `optimizer` and `momentum`.
    activations: bytes that one micro-batch needs for its backward pass (`encoder_activations` and the like).
    """
    states = 2 if trainer.optimizer == "adamw" else int(trainer.momentum > 0)
    return LIBRARIES + value_bytes * (parameters.total + (1 + states) * parameters.trainable) + activations


def encoder_activations(
    architecture: Mapping[str, Any], *, adapter: str, num_examples: int, length: int, dropout: bool, private: bool
) -> int:
    """Bytes that an encoder of the BERT family keeps of one micro-batch for its backward pass.

    Of each token and layer: queries, keys, values, the attention's output, inputs and outputs of the two layer norms
    (8 H), and the feed-forward layer before and after its activation (2 I). Dropout keeps three masked outputs (3 H)
    and, since it rules out fused attention, three tables of attention weights (3 A T). Under privacy the gradients of
    the trained layers' outputs are kept too: each example's norm follows from them. Under the adapter `head` the
    encoder only computes features, one layer after another.

    architecture: as config.json has it, with H hidden_size, I intermediate_size and A num_attention_heads.
    length: T, tokens of each of the num_examples.
    """
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    kept = 8 * hidden + 2 * inner
    if adapter == "head":
        return FLOAT * num_examples * length * kept
    if dropout:
        kept += 3 * hidden + 3 * architecture["num_attention_heads"] * length
    if private:
        kept += 7 * hidden + inner if adapter in ("rgp", "full") else 2 * hidden
    return FLOAT * num_examples * length * kept * architecture["num_hidden_layers"]


def causal_lm_activations(
    architecture: Mapping[str, Any],
    *,
    adapter: str,
    num_examples: int,
    length: int,
    private: bool,
    value_bytes: int = FLOAT,
) -> int:
    """Bytes that a Llama or a GPT-2 needs for the backward pass of one micro-batch; measured ones lay within 10 % for
    `full` and `lora`. The others count as `lora`: measured within 27 %, `dora` and `ia3` under privacy up to 1.6 times
    as much.

    Of each token and layer autograd keeps what `_llama_layer` and `_gpt2_layer` count. The last norm keeps 3 H, and
    three tables of the vocabulary's size V exist at once: the log-probabilities, their gradients, those of the logits.
    Under privacy a layer's inputs and the gradients of its outputs stay until the norms are known, or instead of them
    the gradients of single records where these are the smaller form (privlm.privacy.clipping.gradients): the peak may
    come late, when one of the three tables is left.

    architecture: as config.json has it. length: T, tokens of each of the num_examples.
    """
    count = CAUSAL_LMS[architecture["model_type"]]
    num_layers = _size(architecture, "num_hidden_layers", "n_layer")
    layer = count(architecture, trains_all=adapter in ("full", "rgp"), length=length)
    ends, table = 3 * _size(architecture, "hidden_size", "n_embd"), architecture["vocab_size"]
    peak = num_layers * layer.kept + ends + 3 * table
    if private:
        factors = layer.inputs + layer.gradients
        midway = num_layers * max(layer.kept, factors) + layer.gradients + ends + table
        formed = layer.formed(length)  # of one layer beside its factors, which go then
        at_the_end = num_layers * max(factors, formed) + min(factors, formed) + ends + table
        peak = max(peak, midway, at_the_end)
    return value_bytes * num_examples * length * peak


class _Layer(NamedTuple):
    """Numbers of a token: kept by autograd; inputs of the trained layers; gradients of their outputs.

    weights: shapes (m, n) of the matrices that train.
    """

    kept: int
    inputs: int
    gradients: int
    weights: tuple[tuple[int, int], ...] = ()

    def formed(self, length: int) -> int:
        """Of the gradients of single records, where a matrix holds no more numbers than its factors."""
        return sum(m * n for m, n in self.weights if m * n <= length * (m + n)) // length


def _llama_layer(architecture: Mapping[str, Any], *, trains_all: bool, length: int) -> _Layer:
    """With H hidden_size, I intermediate_size and K of the keys: two norms (3 H each), queries and attention's output
    (2 H), keys and values (2 K), the gated layer (4 I). Frozen layers keep no input, but LoRA's own on queries and
    values.
    """
    hidden, inner = architecture["hidden_size"], architecture["intermediate_size"]
    heads = architecture["num_attention_heads"]
    keys = (architecture.get("num_key_value_heads") or heads) * (architecture.get("head_dim") or hidden // heads)
    if not trains_all:
        return _Layer(5 * hidden + 2 * keys + 3 * inner, hidden, hidden + keys)
    weights = (*[(hidden, hidden)] * 2, *[(keys, hidden)] * 2, *[(inner, hidden)] * 3)
    gradients = 5 * hidden + 2 * keys + 2 * inner
    return _Layer(8 * hidden + 2 * keys + 4 * inner, 5 * hidden + inner, gradients, weights)


def _gpt2_layer(architecture: Mapping[str, Any], *, trains_all: bool, length: int) -> _Layer:
    """As `_llama_layer`: two norms (2 H each), queries, keys, values (3 H) and attention's output (H), the wide layer
    with its steps of GELU (5 I). Dropout keeps two masked outputs (2 H) and three tables of attention weights (3 A T).
    """
    hidden = _size(architecture, "hidden_size", "n_embd")
    inner = architecture.get("n_inner") or 4 * hidden
    masked = 0
    if architecture.get("resid_pdrop", 0.1) or architecture.get("attn_pdrop", 0.1):
        masked = 2 * hidden + 3 * _size(architecture, "num_attention_heads", "n_head") * length
    if not trains_all:
        return _Layer(7 * hidden + 4 * inner + masked, hidden, 3 * hidden)
    weights = ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden))
    return _Layer(8 * hidden + 5 * inner + masked, 5 * hidden + inner, 7 * hidden + inner, weights)


CAUSAL_LMS = {**dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama_layer), "gpt2": _gpt2_layer}
"""Architecture -> what counts a layer of it."""


def _size(architecture: Mapping[str, Any], *names: str) -> int:
    """By the first name that is there: GPT-2 has its own."""
    return next(architecture[name] for name in names if name in architecture)
