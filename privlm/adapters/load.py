"""A model with its adapter applied, ready to be trained: one function for each family."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from privlm.adapters.adapter import apply_adapter
from privlm.adapters.schema import AdapterConfig
from privlm.errors import UsageError
from privlm.models import causal, encoder
from privlm.models.causal import build_causal_lm, context_length
from privlm.models.encoder import build_encoder_classifier
from privlm.models.loaded import Loaded
from privlm.models.loading import require_vocabulary
from privlm.models.locate import download_weights, locate_model
from privlm.models.quantized import require_quantizable
from privlm.models.schema import CausalLMConfig, ModelConfig, is_causal_lm


def load_encoder_classifier(model: ModelConfig, adapter: AdapterConfig, num_labels: int, seed: int) -> Loaded:
    """An EncoderClassifier with its adapter applied.

    seed: decides the head, the adapter's initial values, and the encoder where it is random.

    Raises UsageError as `locate_model`, `build_encoder_classifier` and `apply_adapter` do, and for another family.
    """
    if is_causal_lm(model):
        raise UsageError(
            f"model={model.name} is a causal language model, and this task trains an encoder: model=minilm"
        )
    files = locate_model(model)

    def build() -> nn.Module:
        classifier, _ = build_encoder_classifier(model, files, num_labels, seed)
        classifier.encoder = apply_adapter(classifier.encoder, adapter, seed, head=classifier.head)
        return classifier

    settings = {name: getattr(model, name) for name in ("pooling", "normalize_features", "head", "dropout")}
    return Loaded.of(
        build,
        tokenizer=encoder.load_tokenizer(model, files),
        made_of=["encoder", files.fingerprint, settings, num_labels, _given(adapter), seed],
    )


def load_causal_lm(model: CausalLMConfig, adapter: AdapterConfig, seed: int) -> Loaded:
    """A causal language model to be trained, with its adapter applied.

    Its embedding keeps its size: where the tokenizer has no padding token, what lies under padding is another one
    (privlm.data.causal_lm.padding_id).

    seed: decides the adapter's initial values, and the weights where they are random.

    Raises UsageError as `locate_model`, `build_causal_lm` and `apply_adapter` do, for another family, for a
    model.max_length beyond the model's own, and for a tokenizer with tokens that the model does not embed.
    """
    if not is_causal_lm(model):
        raise UsageError(
            f"model={model.name} is an encoder, and this task trains a causal language model: model=smollm2"
        )
    require_quantizable(model, adapter.name)
    files = locate_model(model)
    download_weights(files, model.hub_id)
    limit = context_length(files, model.random)
    if limit is not None and model.max_length > limit:
        raise UsageError(f"model.max_length={model.max_length}: {model.name} takes at most {limit} tokens")
    tokenizer = causal.load_tokenizer(files)

    def build() -> nn.Module:
        base = build_causal_lm(
            files,
            model.random,
            getattr(torch, model.dtype),
            seed=seed,
            group="model",
            quantization=model.quantization,
        )
        require_vocabulary(base, tokenizer, files.directory or "model.random")
        return apply_adapter(base, adapter, seed)

    packed = [] if model.quantization is None else [model.quantization]
    made_of = ["causal_lm", files.fingerprint, model.dtype, _given(adapter), seed, *packed]
    return Loaded.of(build, tokenizer=tokenizer, made_of=made_of)


def _given(config: Any) -> dict[str, Any]:
    """The settings that are not null: a field that comes later changes no digest of before."""
    content: Any = OmegaConf.to_container(OmegaConf.create(config))
    return {name: value for name, value in content.items() if value is not None}
