"""Peak memory of one training process, estimated from counts before anything is built. No torch.

    peak = libraries + 4 P + 4 (g + o) P_trained + activations

P, P_trained: parameters, those that train. g: the gradient, and under privacy the noise drawn for it beside it.
o: optimizer states. Numbers are float32 (bf16 autocast keeps weights, gradients and states in float32); libraries are
what torch, transformers, peft and the report's own hold on the CPU, measured on Linux with torch 2.13.
"""

from __future__ import annotations

from typing import Any

from privlm.adapters.estimate import ParameterCount

LIBRARIES = 520e6  # bytes
FLOAT = 4  # bytes


def peak_memory(parameters: ParameterCount, trainer: Any, *, activations: int, private: bool) -> int:
    """Bytes of one process at its peak.

    trainer: a TrainerConfig (privlm.config), or any object with `optimizer` and `momentum`.
    activations: bytes that one micro-batch keeps for its backward pass (`encoder_activations`).
    """
    states = 2 if trainer.optimizer == "adamw" else int(trainer.momentum > 0)
    gradients = 2 if private else 1
    trained = FLOAT * (gradients + states) * parameters.trainable
    return int(LIBRARIES + FLOAT * parameters.total + trained + activations)


def encoder_activations(
    *, num_layers: int, hidden_size: int, intermediate_size: int, num_tokens: int, backward: bool, private: bool
) -> int:
    """Bytes that an encoder of the BERT family keeps of one micro-batch.

    Of each token and layer: queries, keys, values, the attention's output, and the inputs and outputs of the two layer
    norms (8 H), and the feed-forward layer before and after its activation (2 I). The attention's weights are never
    stored (fused attention). Under privacy the gradients of the layers' outputs, from which each example's norm
    follows, take the same once more.

    num_tokens: examples of a micro-batch times their length.
    backward: False if the encoder only computes features, one layer after the other.
    """
    layer = FLOAT * num_tokens * (8 * hidden_size + 2 * intermediate_size)
    return layer * num_layers * (2 if private else 1) if backward else layer
