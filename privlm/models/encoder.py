"""A text encoder with a classification head, built from files or at random."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from privlm.errors import UsageError
from privlm.models.architecture import max_tokens, read_architecture
from privlm.models.loading import NO_CODE, NO_PICKLE, quiet, readable, refuse_own_code, require_fit, require_vocabulary
from privlm.models.locate import ModelFiles, download_weights, require_files
from privlm.models.schema import ModelConfig
from privlm.models.scratch import from_scratch, shape_config
from privlm.models.wordpiece import word_piece_tokenizer

INITIAL_STD = 0.02  # of head weights, as BERT's initializer_range
MLP_DROPOUT = 0.1  # of RoBERTa's classification head


class EncoderClassifier(nn.Module):
    """Encoder, pooling, head. All trainable parameters sit in Linear, Embedding and LayerNorm modules."""

    def __init__(self, encoder: PreTrainedModel, head: nn.Module, pooling: str, normalize_features: bool) -> None:
        super().__init__()
        self.encoder: nn.Module = encoder  # or the adapter around it
        self.head = head
        self.pooling = pooling
        self.normalize_features = normalize_features

    def features(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Pooled last hidden states, float [B, H]: mean over the attended tokens, or the first one's (cls)."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize_features else pooled

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, K] of features [B, H]."""
        return self.head(features)

    def forward(self, features: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Logits [B, K] of token ids, or of cached features where the batch holds them."""
        return self.classify(self.features(**inputs) if features is None else features)


def build_encoder_classifier(
    config: ModelConfig, files: ModelFiles, num_labels: int, seed: int
) -> tuple[EncoderClassifier, PreTrainedTokenizerBase]:
    """Builds the model in evaluation mode, float32, and its tokenizer.

    Args:
        files: found by `locate_model`; a hub model is downloaded here.
        seed: decides the head, and the encoder where it is random; torch's global generator is neither read nor moved.

    Raises:
        UsageError: a file is missing, unreadable or does not fit config.json, or model.max_length is too long.
    """
    architecture = read_architecture(config, files)
    limit = max_tokens(architecture)
    if limit is not None and config.max_length > limit:
        raise UsageError(f"model.max_length={config.max_length}: {config.name} takes at most {limit} tokens")
    tokenizer = load_tokenizer(config, files)
    if files.directory is None:
        assert config.random is not None
        shape = shape_config(config.random, tokenizer)
        encoder = from_scratch(AutoModel, shape, seed, options=_without_pooler(shape))
    else:
        encoder = _pretrained_encoder(files.directory)
    _check_tokenizer(encoder, tokenizer, files.directory or "model.random")
    head = _build_head(config.head, encoder.config.hidden_size, num_labels, seed)
    model = EncoderClassifier(encoder, head, config.pooling, config.normalize_features)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return model.eval(), tokenizer


def load_tokenizer(config: ModelConfig, files: ModelFiles) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Completes the folder of a hub model, and raises UsageError, as the builder does."""
    if files.directory is None:
        return word_piece_tokenizer()
    download_weights(files, config.hub_id)
    require_files(files.directory)
    refuse_own_code(files.directory)
    with readable(files.directory):
        return AutoTokenizer.from_pretrained(files.directory, **NO_CODE)


def _pretrained_encoder(directory: Path) -> PreTrainedModel:
    """The encoder of a checkpoint of any head (classifier, masked LM); the head's weights are left out."""
    with readable(directory), quiet():
        config = AutoConfig.from_pretrained(directory, **NO_CODE)
        encoder, report = AutoModel.from_pretrained(
            directory, config=config, output_loading_info=True, **_without_pooler(config), **NO_PICKLE
        )
    require_fit(report, directory, left_out="pooler.")
    return encoder.float()


def _check_tokenizer(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: object) -> None:
    require_vocabulary(encoder, tokenizer, source)
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"{source}: the tokenizer has no padding token, so texts of unlike length make no batch; name one that the "
            "model knows as pad_token in its tokenizer_config.json"
        )


def _without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """The pooler is trained by no objective here: its parameters would be dead weight, or pure noise under privacy."""
    encoder_class: Any = MODEL_MAPPING[type(config)]
    accepted = inspect.signature(encoder_class).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def _build_head(kind: str, hidden_size: int, num_labels: int, seed: int) -> nn.Module:
    """`linear`, or the `mlp` of RobertaForSequenceClassification; normal weights from `seed`, zero biases."""
    out_proj = nn.utils.skip_init(nn.Linear, hidden_size, num_labels)
    head: nn.Module = out_proj
    if kind == "mlp":
        layers: list[tuple[str, nn.Module]] = [
            ("dropout", nn.Dropout(MLP_DROPOUT)),
            ("dense", nn.utils.skip_init(nn.Linear, hidden_size, hidden_size)),
            ("tanh", nn.Tanh()),
            ("dropout_out", nn.Dropout(MLP_DROPOUT)),
            ("out_proj", out_proj),
        ]
        head = nn.Sequential(OrderedDict(layers))
    generator = torch.Generator().manual_seed(seed)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=INITIAL_STD, generator=generator)
            nn.init.zeros_(module.bias)
    return head
