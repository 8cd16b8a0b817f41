"""The engine on real architectures, randomly initialised and tiny: padding, position ids, tied heads, adapters."""

import copy
from pathlib import Path

import peft
import pytest
import torch
import transformers
from naive import assert_agrees, clipped_sums, naive
from torch import Tensor, nn
from torch.nn import functional as F

from privlm.errors import UsageError
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.inspection import UnsupportedModuleError

Batch = dict[str, Tensor]

VOCABULARY = 50
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "num_labels": 3,
    "initializer_range": 0.2,
}


def bert() -> transformers.PreTrainedModel:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER, **NO_DROPOUT["bert"])).train()


def roberta() -> transformers.PreTrainedModel:
    config = transformers.RobertaConfig(**ENCODER, **NO_DROPOUT["bert"], pad_token_id=1)
    return transformers.RobertaForSequenceClassification(config).train()


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=24,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **NO_DROPOUT["gpt2"],
    )
    return transformers.GPT2LMHeadModel(config).train()


def padded_batch(num_records: int = 7, num_tokens: int = 11, pad_token_id: int = 0) -> Batch:
    torch.manual_seed(2)
    length_B = torch.randint(3, num_tokens + 1, (num_records,))
    length_B[0] = num_tokens
    mask_BT = (torch.arange(num_tokens) < length_B[:, None]).long()
    ids_BT = torch.randint(2, VOCABULARY, (num_records, num_tokens)).masked_fill(mask_BT == 0, pad_token_id)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": torch.randint(0, 3, (num_records,))}


def classification(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def language_model(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    loss_BT = F.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
    return (loss_BT * batch["attention_mask"][:, 1:]).sum(1)


def with_lora(model: transformers.PreTrainedModel, **options: object) -> peft.PeftModel:
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, **options))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the gradient of A
            nn.init.normal_(parameter, std=0.2)
    return adapted


def test_bert_with_broadcast_position_ids() -> None:
    assert_agrees(bert(), classification, padded_batch())


def test_bert_with_a_batch_as_large_as_a_record_is_long() -> None:
    assert_agrees(bert(), classification, padded_batch(num_records=9, num_tokens=9))


def test_roberta_with_position_ids_from_padding() -> None:
    assert_agrees(roberta(), classification, padded_batch(pad_token_id=1))


def test_gpt2_with_tied_head() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert_agrees(model, language_model, padded_batch())


def test_part_of_a_model_frozen() -> None:
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    assert_agrees(model, classification, padded_batch())


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_of_padded_records(micro_batch_size: int) -> None:
    model, batch = bert(), padded_batch()
    _, expected = naive(model, classification, batch, 1.0)
    _, sums = clipped_sums(PrivacyEngine(model, clipping_norm=1.0), classification, batch, micro_batch_size)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_activation_checkpointing(attention: str) -> None:
    model = bert()
    model.set_attn_implementation(attention)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_agrees(model, classification, padded_batch())


def test_reentrant_checkpointing_is_refused() -> None:
    model = bert()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UnsupportedModuleError, match=r"bert\.encoder.*use_reentrant=False"):
        PrivacyEngine(model, clipping_norm=1.0)


def test_lora() -> None:
    model = with_lora(bert(), task_type="SEQ_CLS", target_modules=["query", "value", "dense"])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("modules_to_save" in name for name in trainable)  # the classifier: only its active copy
    assert_agrees(model, classification, padded_batch())


def test_lora_on_gpt2() -> None:
    model = with_lora(gpt2(), task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert_agrees(model, language_model, padded_batch())


def test_switching_the_adapter_after_attaching_is_an_error() -> None:
    model = with_lora(bert(), task_type="SEQ_CLS", target_modules=["query"])
    model.add_adapter("other", peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"]))
    model.set_adapter("default")
    engine = PrivacyEngine(model, clipping_norm=1.0)
    model.set_adapter("other")
    with pytest.raises(UsageError, match=r"lora_A\.default"):
        engine.backward(classification, padded_batch())


def test_llama() -> None:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    assert_agrees(transformers.LlamaForCausalLM(config), language_model, padded_batch())


def test_class_saving_and_generation_work_while_attached(tmp_path: Path) -> None:
    model, batch = gpt2(), padded_batch()
    prompt = batch["input_ids"][:1, :3]
    expected = model.eval().generate(prompt, max_new_tokens=5, do_sample=False)
    engine = PrivacyEngine(model.train(), clipping_norm=1.0)
    clipped_sums(engine, language_model, batch)

    assert isinstance(model, transformers.GPT2LMHeadModel)
    assert model.eval().generate(prompt, max_new_tokens=5, do_sample=False).tolist() == expected.tolist()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, dict(model.named_parameters())[name], rtol=0, atol=0)


def test_adapter_saving_works_while_attached(tmp_path: Path) -> None:
    base, batch = bert(), padded_batch()
    model = with_lora(copy.deepcopy(base), task_type="SEQ_CLS", target_modules=["query"])
    engine = PrivacyEngine(model, clipping_norm=1.0)
    clipped_sums(engine, classification, batch)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.save_pretrained(tmp_path)

    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(classification(loaded, batch), classification(model, batch))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(classification(merged, batch), classification(model, batch), rtol=1e-5, atol=1e-5)
