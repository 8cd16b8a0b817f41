"""Hidden states of given texts: what a layer holds for each token, for classifiers, alignments and lenses on top.

Shapes: B texts of a batch, T tokens with padding, d the model's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.llm.local.architectures import Model, read_alone, reads_together
from privlm.llm.local.batching import Limits, batches, output_layer_sees, pad_right
from privlm.llm.types import Norm, Pooling


@torch.no_grad()  # not inference_mode: callers train on what they get
def hidden_states(
    model: Model, texts: Sequence[Sequence[int]], layer: int, pooling: Pooling, norm: Norm, limits: Limits
) -> list[Tensor]:
    """Of each text, float32 on the CPU: [num_tokens, width] for pooling=tokens, else [width].

    texts: token ids, one at least of each. layer, pooling, norm: see privlm.llm.types.Backend.

    Raises UsageError: no such pooling or norm, the model does not have this layer, or norm=final asks an inner layer
    and no final norm is found.
    """
    for option, value, kind in (("pooling", pooling, Pooling), ("norm", norm, Norm)):
        if value not in get_args(kind):
            raise UsageError(f"{option} must be one of {', '.join(get_args(kind))}, not {value}")
    num_layers = model.config.get_text_config().num_hidden_layers
    if not -num_layers - 1 <= layer <= num_layers:
        raise UsageError(f"layer {layer}: the model has layers 0 (the embedding) to {num_layers}")
    is_inner = layer % (num_layers + 1) != num_layers
    normalise = _require_final_norm(model) if norm == "final" and is_inner else nn.Identity()
    last_norm = _final_norm(model) if norm == "raw" and not is_inner else None
    lengths = [len(text) for text in texts]
    together = reads_together(model)
    found: dict[int, Tensor] = {}
    for batch in batches(limits, lengths, lengths) if together else ([i] for i in range(len(texts))):
        states_BTd = _read(model, [texts[i] for i in batch], layer, last_norm, together=together)
        hidden_BTd = normalise(states_BTd).float()
        found |= {i: _pool(hidden_BTd[row, : lengths[i]], pooling).cpu() for row, i in enumerate(batch)}
    return [found[i] for i in range(len(texts))]


def _read(
    model: Model, texts: Sequence[Sequence[int]], layer: int, last_norm: nn.Module | None, *, together: bool
) -> Tensor:
    """What a layer holds [B, T, d]: of texts that are padded on the right, which no token sees in a causal model; or of
    one text alone. Virtual tokens that peft has tuned come before them, and are left out.

    last_norm: what it is given is wanted, not what transformers calls the last hidden states.
    """
    if not together:
        with _given_to(last_norm) as given:
            output = read_alone(model, texts[0], output_hidden_states=True)
        return (given or [output.hidden_states[layer]])[0][:, -len(texts[0]) :]
    nowhere = torch.empty(0, dtype=torch.long)
    ids_BT = pad_right(texts, model)
    with output_layer_sees(model, nowhere, nowhere), _given_to(last_norm) as given:
        output = model(input_ids=ids_BT, output_hidden_states=True, use_cache=False)
    return (given or [output.hidden_states[layer]])[0][:, -ids_BT.shape[1] :]


@contextmanager
def _given_to(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Takes the inputs of a module while it is open; none of no module."""
    given: list[Tensor] = []
    if module is None:
        yield given
        return
    handle = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        yield given
    finally:
        handle.remove()


def _pool(hidden_Td: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "tokens":
        return hidden_Td.clone()  # of the batch nothing else is kept
    return hidden_Td[-1].clone() if pooling == "last" else hidden_Td.mean(0)


def _require_final_norm(model: Model) -> nn.Module:
    norm = _final_norm(model)
    if norm is None:
        raise UsageError(f"norm=final: no norm gives the last hidden states of {type(model).__name__}; use norm=raw")
    return norm


def _final_norm(model: Model) -> nn.Module | None:
    """The norm, of none of the layers, whose output are the last hidden states; None where the last layer gives them,
    as in BERT. It is looked for by what it does, since its name is another one in each architecture.
    """
    outputs: dict[nn.Module, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs.update({module: output}))
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    try:
        one_token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        last = model(input_ids=one_token, output_hidden_states=True, use_cache=False).hidden_states[-1]
    finally:
        for handle in handles:
            handle.remove()
    for module, output in outputs.items():
        if output.data_ptr() == last.data_ptr():  # the same, or a view of it
            return module
    return None
