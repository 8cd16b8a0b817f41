"""Tiny random models of many architectures, as they are trained in one of several ways, with a batch for each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 60

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """A tiny model of one family.

    task: of peft; None where none of its tasks takes these inputs. lora, ia3, feedforward: names of the layers that are
    adapted. prompt: sizes of virtual tokens that peft does not find in the model's config.
    """

    model: str
    config: str
    options: dict[str, Any]
    task: str | None
    lora: tuple[str, ...]
    ia3: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    inputs: str = "text"
    prompt: Mapping[str, int] = field(default_factory=dict)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)(config)
        return model.train()


def _encoder(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "num_labels": 3,
        "initializer_range": 0.2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    } | changes


def _decoder(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
    } | changes


def _sequence_to_sequence(**changes: Any) -> dict[str, Any]:
    sizes = {f"{side}_{size}": value for side in ("encoder", "decoder") for size, value in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    none = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return sizes | none | special | {"vocab_size": VOCABULARY, "d_model": 16, "init_std": 0.2} | changes


def _llama_like(model: str, *, head_dim: int | None = None, tied: bool = True, **changes: Any) -> Architecture:
    options = _decoder(tie_word_embeddings=tied, **changes)
    if head_dim is not None:
        options["head_dim"] = head_dim
    return Architecture(
        f"{model}ForCausalLM", f"{model.replace('Gemma3', 'Gemma3Text')}Config", options, "CAUSAL_LM",
        ("q_proj", "v_proj"), ("k_proj", "v_proj", "down_proj"), ("down_proj",),
    )  # fmt: skip


def _bert_like(model: str, prompt: Mapping[str, int] | None = None, **changes: Any) -> Architecture:
    return Architecture(
        f"{model}ForSequenceClassification", f"{model}Config", _encoder(**changes), "SEQ_CLS",
        ("query", "value"), ("key", "value", "output.dense"), ("output.dense",), prompt=prompt or {},
    )  # fmt: skip


_SIZES = {"token_dim": 16, "num_layers": 2, "num_attention_heads": 2}

GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _bert_like("Bert"),
    "roberta": _bert_like("Roberta"),
    "distilbert": Architecture(
        "DistilBertForSequenceClassification", "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": 3,
         "max_position_embeddings": 40, "initializer_range": 0.2, "dropout": 0.0, "attention_dropout": 0.0,
         "seq_classif_dropout": 0.0, "pad_token_id": 0},
        "SEQ_CLS", ("q_lin", "v_lin"), ("k_lin", "v_lin", "lin2"), ("lin2",), prompt=_SIZES,
    ),
    "deberta-v2": Architecture(
        "DebertaV2ForSequenceClassification", "DebertaV2Config",
        _encoder(relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_dropout=0.0, pooler_hidden_size=16,
                 norm_rel_ebd="layer_norm", position_biased_input=False, share_att_key=True, position_buckets=8),
        "SEQ_CLS", ("query_proj", "value_proj"), ("key_proj", "value_proj", "output.dense"), ("output.dense",),
    ),
    "electra": _bert_like("Electra", {"token_dim": 8}, embedding_size=8, summary_last_dropout=0.0),
    "albert": Architecture(
        "AlbertForSequenceClassification", "AlbertConfig", _encoder(embedding_size=8, classifier_dropout_prob=0.0),
        "SEQ_CLS", ("query", "value"), ("key", "value", "ffn_output"), ("ffn_output",), prompt={"token_dim": 8},
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel", "GPT2Config", GPT2, "CAUSAL_LM", ("c_attn",), ("c_attn", "mlp.c_proj"), ("mlp.c_proj",)
    ),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM", "GPTNeoConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32,
         "attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 40,
         "initializer_range": 0.2, "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "CAUSAL_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj", "c_proj"), ("c_proj",),
    ),
    "gptj": Architecture(
        "GPTJForCausalLM", "GPTJConfig", {**GPT2, "rotary_dim": 4, "tie_word_embeddings": False},
        "CAUSAL_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc_out"), ("fc_out",),
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", _decoder(hidden_dropout=0.0) | {"num_key_value_heads": 2},
        "CAUSAL_LM", ("query_key_value",), ("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",),
    ),
    "opt": Architecture(
        "OPTForCausalLM", "OPTConfig",
        _decoder(ffn_dim=32, word_embed_proj_dim=16, dropout=0.0, init_std=0.2) | {"num_key_value_heads": 2},
        "CAUSAL_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2"), ("fc2",),
    ),
    "bloom": Architecture(
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2,
         "hidden_dropout": 0.0, "attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "CAUSAL_LM", ("query_key_value",), ("query_key_value", "dense_4h_to_h"), ("dense_4h_to_h",),
    ),
    "llama": _llama_like("Llama"),
    "qwen2": _llama_like("Qwen2"),
    "qwen3": _llama_like("Qwen3", head_dim=8),
    "mistral": _llama_like("Mistral", tied=False, sliding_window=None),
    "mixtral": Architecture(
        "MixtralForCausalLM", "MixtralConfig",
        _decoder(num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
        "CAUSAL_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj"), (),
    ),
    "gemma": _llama_like("Gemma", head_dim=8),
    "gemma2": _llama_like("Gemma2", head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3": _llama_like("Gemma3", head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "phi": Architecture(
        "PhiForCausalLM", "PhiConfig",
        _decoder(resid_pdrop=0.0, embd_pdrop=0.0, tie_word_embeddings=False) | {"num_key_value_heads": 2},
        "CAUSAL_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2"), ("fc2",),
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
         "dropout_rate": 0.0, "initializer_factor": 0.5, "relative_attention_num_buckets": 8,
         "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
        "SEQ_2_SEQ_LM", ("q", "v"), ("k", "v", "wo"), ("wo",), "text to text",
    ),
    "bart": Architecture(
        "BartForConditionalGeneration", "BartConfig", _sequence_to_sequence(max_position_embeddings=40),
        "SEQ_2_SEQ_LM", ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2"), ("fc2",), "text to text",
    ),
    "vit": Architecture(
        "ViTForImageClassification", "ViTConfig",
        {key: value for key, value in _encoder(image_size=8, patch_size=4, num_channels=2).items()
         if key not in ("vocab_size", "max_position_embeddings", "pad_token_id")},
        "SEQ_CLS", ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2"), ("fc2",), "image",
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration", "WhisperConfig",
        _sequence_to_sequence(max_source_positions=12, max_target_positions=40, num_mel_bins=6),
        None, ("q_proj", "v_proj"), ("k_proj", "v_proj", "fc2"), ("fc2",), "sound to text",
    ),
    "mamba": Architecture(
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 4,
         "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "CAUSAL_LM", ("in_proj", "x_proj"), ("in_proj", "out_proj"), ("out_proj",), prompt=_SIZES,
    ),
}  # fmt: skip


def _prefix(architecture: Architecture) -> peft.PeftConfig:
    sizes = architecture.prompt if "num_layers" in architecture.prompt else {}
    return peft.PrefixTuningConfig(task_type=architecture.task, num_virtual_tokens=3, **sizes)


def _prompt(architecture: Architecture) -> peft.PeftConfig:
    return peft.PromptTuningConfig(task_type=architecture.task, num_virtual_tokens=3, **architecture.prompt)


def _lora(architecture: Architecture, **options: Any) -> peft.PeftConfig:
    return peft.LoraConfig(r=2, task_type=architecture.task, target_modules=list(architecture.lora), **options)


def _ia3(architecture: Architecture) -> peft.PeftConfig:
    return peft.IA3Config(
        task_type=architecture.task,
        target_modules=list(architecture.ia3),
        feedforward_modules=list(architecture.feedforward),
    )


METHODS: dict[str, Callable[[Architecture], peft.PeftConfig] | None] = {
    "full": None,
    "lora": _lora,
    "dora": lambda architecture: _lora(architecture, use_dora=True),
    "ia3": _ia3,
    "prefix": _prefix,
    "prompt": _prompt,
}


def build(architecture: str, method: str) -> nn.Module:
    """The model as it is trained. Raises what peft raises where it does not know this architecture."""
    found = ARCHITECTURES[architecture]
    model, config_of = found.build(), METHODS[method]
    if config_of is None:
        return model
    model = peft.get_peft_model(model, config_of(found))
    for name, parameter in model.named_parameters():
        # What begins as zero hides the gradient of its partner.
        if parameter.requires_grad and not name.endswith((".bias",)) and "modules_to_save" not in name:
            nn.init.normal_(parameter, 1.0 if "ia3" in name or "magnitude" in name else 0.0, 0.2)
    return model.train()


def batch_of(architecture: str, num_records: int, num_tokens: int) -> Batch:
    torch.manual_seed(2)
    inputs = ARCHITECTURES[architecture].inputs
    if inputs == "image":
        return {"pixel_values": torch.randn(num_records, 2, 8, 8), "labels": torch.randint(0, 3, (num_records,))}
    ids_BT, mask_BT = _tokens(num_records, num_tokens)
    if inputs == "sound to text":
        return {"input_features": torch.randn(num_records, 6, 24), "labels": ids_BT}
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if inputs == "text to text":
        return batch | {"labels": _tokens(num_records, num_tokens - 2)[0]}
    if ARCHITECTURES[architecture].task == "SEQ_CLS":
        return batch | {"labels": torch.randint(0, 3, (num_records,))}
    return batch


def _tokens(num_records: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded on the right."""
    length_B = torch.randint(3, num_tokens, (num_records,))
    length_B[0] = num_tokens
    mask_BT = (torch.arange(num_tokens) < length_B[:, None]).long()
    return torch.randint(3, VOCABULARY, mask_BT.shape).masked_fill(mask_BT == 0, 0), mask_BT


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each record: of its label, or summed over its tokens."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "labels" not in batch:  # a causal language model
        labels_BT = batch["input_ids"]
        return _token_losses(model(**inputs, use_cache=_has_prefix(model)).logits[:, -labels_BT.shape[1] :], labels_BT)
    if batch["labels"].ndim == 1:
        return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")
    logits_BTv = model(**inputs, decoder_input_ids=batch["labels"]).logits
    return _token_losses(logits_BTv[:, -batch["labels"].shape[1] :], batch["labels"])


def _has_prefix(model: nn.Module) -> bool:
    return isinstance(model, peft.PeftModel) and model.active_peft_config.peft_type == peft.PeftType.PREFIX_TUNING


def _token_losses(logits_BTv: Tensor, labels_BT: Tensor) -> Tensor:
    """Of the next token of each, [B]; virtual tokens before them have been left out."""
    loss_BT = F.cross_entropy(logits_BTv[:, :-1].mT, labels_BT[:, 1:], reduction="none")
    return (loss_BT * (labels_BT[:, 1:] != 0)).sum(1)
