"""Peak memory of one training process, estimated from counts before anything is built. No torch.

    peak = libraries + 4 P + 4 (1 + o) P_trained + activations

P: parameters; P_trained: those that train, each with its gradient and o optimizer states. All are float32, under bf16
autocast too. libraries: what torch, transformers, peft and those of the report hold, measured on a CPU with torch 2.13.
Measured runs lay within 13 % of the estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from privlm.adapters.estimate import ParameterCount

LIBRARIES = 520_000_000  # bytes
FLOAT = 4  # bytes


def peak_memory(parameters: ParameterCount, trainer: Any, activations: int) -> int:
    """Bytes of one process at its peak.

    trainer: a TrainerConfig (privlm.training.schema), or any object with `optimizer` and `momentum`.
    activations: bytes that one micro-batch keeps for its backward pass (`encoder_activations`).
    """
    states = 2 if trainer.optimizer == "adamw" else int(trainer.momentum > 0)
    return LIBRARIES + FLOAT * (parameters.total + (1 + states) * parameters.trainable) + activations


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
        kept += {"lora": 2 * hidden, "rgp": 7 * hidden + inner, "full": 7 * hidden + inner}[adapter]
    return FLOAT * num_examples * length * kept * architecture["num_hidden_layers"]
