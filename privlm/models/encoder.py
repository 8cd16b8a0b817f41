"""A text encoder with a classification head: built from files or at random, saved and loaded."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
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
from privlm.models.files import ModelFiles, download_weights, require_files
from privlm.models.loading import quiet, readable
from privlm.models.schema import ModelConfig
from privlm.models.wordpiece import word_piece_tokenizer

INITIAL_STD = 0.02  # of head weights, as BERT's initializer_range
MLP_DROPOUT = 0.1  # of RoBERTa's classification head


class EncoderClassifier(nn.Module):
    """Encoder, pooling, head. All trainable parameters sit in Linear, Embedding and LayerNorm modules."""

    def __init__(self, encoder: PreTrainedModel, head: nn.Module, pooling: str, normalize_features: bool) -> None:
        super().__init__()
        self.encoder: PreTrainedModel | PeftModel = encoder
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
    if files.directory is None:
        tokenizer = word_piece_tokenizer()
        encoder = _random_encoder(AutoConfig.for_model(**architecture), seed)
    else:
        download_weights(files, config.hub_id)
        require_files(files.directory)
        with readable(files.directory):
            tokenizer = AutoTokenizer.from_pretrained(files.directory)
        encoder = _pretrained_encoder(files.directory)
    head = _build_head(config.head, encoder.config.hidden_size, num_labels, seed)
    model = EncoderClassifier(encoder, head, config.pooling, config.normalize_features)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
    return model.eval(), tokenizer


def save_model(model: EncoderClassifier, directory: Path) -> None:
    """Saves what was trained: `head.safetensors`, and `encoder/` (peft's own files for LoRA) unless it was frozen."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(model.head.state_dict(), directory / "head.safetensors")
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        return
    if isinstance(model.encoder, PeftModel):
        # left to itself, peft asks the hub whether the vocabulary was changed
        model.encoder.save_pretrained(str(directory / "encoder"), save_embedding_layers=False)
    else:
        with quiet():
            model.encoder.save_pretrained(directory / "encoder")


def load_model(model: EncoderClassifier, directory: Path) -> None:
    """Puts what `save_model` wrote into `model`, built from the same configuration and seed, its adapter applied.

    Raises:
        UsageError: the directory does not hold what was trained of such a model, or a file is damaged.
    """
    head, encoder = directory / "head.safetensors", directory / "encoder"
    adapter = encoder / "adapter_model.safetensors"
    required = [head, adapter] if isinstance(model.encoder, PeftModel) else [head]
    for path in required:
        if not path.is_file():
            raise UsageError(f"{directory} is not a saved model with this adapter: no {path.relative_to(directory)}")
    with readable(directory):
        model.head.load_state_dict(load_file(head))
        if isinstance(model.encoder, PeftModel):
            set_peft_model_state_dict(model.encoder, load_file(adapter))
        elif encoder.is_dir():
            model.encoder.load_state_dict(_pretrained_encoder(encoder).state_dict())


def _pretrained_encoder(directory: Path) -> PreTrainedModel:
    """The encoder of a checkpoint of any head (classifier, masked LM); the head's weights are left out."""
    with readable(directory), quiet():
        config = AutoConfig.from_pretrained(directory)
        encoder, report = AutoModel.from_pretrained(
            directory, config=config, output_loading_info=True, **_without_pooler(config)
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        raise UsageError(f"{directory}: weights do not fit config.json (first missing: {missing[:3]})")
    return encoder.float()


def _random_encoder(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, **_without_pooler(config))


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
