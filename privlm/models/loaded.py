"""A model that a run trains, with what is needed to make it again and to keep what was trained of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from privlm.adapters.adapter import apply_adapter
from privlm.config import AdapterConfig, ModelConfig
from privlm.errors import UsageError
from privlm.models import causal, encoder
from privlm.models.causal import build_causal_lm, context_length
from privlm.models.encoder import build_encoder_classifier
from privlm.models.loading import require_vocabulary
from privlm.models.locate import download_weights, locate_model
from privlm.models.saving import load_trained, save_trained
from privlm.models.schema import CausalLMConfig, is_causal_lm


@dataclass(frozen=True)
class Loaded:
    """A model before or after its training.

    digest: names the base weights and all that makes the model of them, 64 hexadecimal digits.
    build: makes the untrained model again, in evaluation mode: the same weights, the adapter applied with the same
        seed. Downloads nothing, and leaves torch's global generator as it is.
    save: writes what training can have changed of such a model into a folder.
    load: puts it into a model made by `build`; raises UsageError for a folder that does not fit.
    """

    model: nn.Module
    tokenizer: Any
    digest: str
    build: Callable[[], nn.Module]
    save: Callable[[nn.Module, Path], None]
    load: Callable[[nn.Module, Path], None]

    @classmethod
    def of(cls, build: Callable[[], nn.Module], *, made_of: Any, tokenizer: Any = None) -> Loaded:
        """A model of any kind, saved and loaded by what trains in it (privlm.models.saving).

        build: makes the untrained model; may draw from torch's global generator, which is put back.
        made_of: names weights, settings and seed (JSON), the same for the same untrained model and for no other.
        """
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

        def undisturbed() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return build().eval()

        return cls(
            model=undisturbed(),
            tokenizer=tokenizer,
            digest=digest,
            build=undisturbed,
            save=lambda model, folder: save_trained(model, folder, digest),
            load=lambda model, folder: load_trained(model, folder, digest),
        )

    def fresh(self) -> Loaded:
        """The same with a newly built, untrained model."""
        return replace(self, model=self.build())


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
    files = locate_model(model)
    download_weights(files, model.hub_id)
    limit = context_length(files, model.random)
    if limit is not None and model.max_length > limit:
        raise UsageError(f"model.max_length={model.max_length}: {model.name} takes at most {limit} tokens")
    tokenizer = causal.load_tokenizer(files)

    def build() -> nn.Module:
        base = build_causal_lm(files, model.random, getattr(torch, model.dtype), seed=seed, group="model")
        require_vocabulary(base, tokenizer, files.directory or "model.random")
        return apply_adapter(base, adapter, seed)

    return Loaded.of(
        build, tokenizer=tokenizer, made_of=["causal_lm", files.fingerprint, model.dtype, _given(adapter), seed]
    )


def _given(config: Any) -> dict[str, Any]:
    """The settings that are not null: a field that comes later changes no digest of before."""
    content: Any = OmegaConf.to_container(OmegaConf.create(config))
    return {name: value for name, value in content.items() if value is not None}
