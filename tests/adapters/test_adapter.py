"""What trains under each adapter, LoRA's exactness, and the count without a model against the count of the model."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from transformers import BertConfig, BertModel

from privlm.adapters.adapter import apply_adapter, count_parameters
from privlm.adapters.estimate import ParameterCount, estimate_parameters
from privlm.config import AdapterConfig, ModelConfig
from privlm.errors import UsageError
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier
from privlm.models.locate import ModelFiles, locate_model
from privlm.models.wordpiece import word_piece_tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ADAPTERS = ("head", "lora", "full")


def adapter(name: str, **changes) -> AdapterConfig:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "adapter" / f"{name}.yaml"))
    del values["defaults"]
    return AdapterConfig(**(values | changes))


def tiny(**changes) -> ModelConfig:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / "tiny.yaml"))
    return ModelConfig(**(values["model"] | changes))


def build(config: ModelConfig | None = None, num_labels: int = 2) -> EncoderClassifier:
    config = config or tiny()
    return build_encoder_classifier(config, locate_model(config), num_labels, seed=0)[0]


def adapted(config: AdapterConfig, model: EncoderClassifier | None = None, seed: int = 0) -> EncoderClassifier:
    model = model or build()
    model.encoder = apply_adapter(model.encoder, config, seed, head=model.head)
    return model


def token_ids() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1400, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(("name", "prefixes"), [("head", ["head."]), ("full", [""]), ("lora", ["head.", "encoder."])])
def test_trained_parameters_are_those_of_the_adapter_and_get_gradients(name, prefixes):
    model = adapted(adapter(name))
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(any(key.startswith(prefix) for prefix in prefixes) for key in trained)
    if name == "lora":
        assert all("lora_" in key or key.startswith("head.") for key in trained)
    if name == "full":
        assert trained == {key for key, _ in model.named_parameters()}
    model(**token_ids()).sum().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_head_can_stay_frozen_beside_lora():
    model = adapted(adapter("lora", train_head=False))
    assert not any(parameter.requires_grad for parameter in model.head.parameters())


def test_merged_lora_equals_its_forward():
    model = adapted(adapter("lora")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
        before = model(**token_ids())
        assert isinstance(model.encoder, PeftModel)
        model.encoder = model.encoder.merge_and_unload()
        torch.testing.assert_close(model(**token_ids()), before, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(build()(**token_ids()), before, atol=1e-4)


def test_lora_starts_at_the_pretrained_function_and_from_its_seed():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [adapted(adapter("lora"), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n]) for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    with torch.no_grad():
        torch.testing.assert_close(models[0].eval()(**token_ids()), build()(**token_ids()))


@pytest.mark.parametrize(
    ("name", "model_type", "head"), list(product(ADAPTERS, ("bert", "roberta", "xlm-roberta"), ("linear", "mlp")))
)
def test_estimate_equals_the_count(name, model_type, head):
    shape = tiny().random
    assert shape is not None
    config = tiny(random=shape | {"model_type": model_type, "type_vocab_size": 1}, head=head)
    estimate = estimate_parameters(config, locate_model(config), adapter(name), num_labels=3)
    assert estimate == count_parameters(adapted(adapter(name), build(config, num_labels=3)))


def test_estimate_of_lora_on_other_modules():
    chosen = adapter(
        "lora", rank=2, target_modules=["word_embeddings", "output.dense", "encoder.layer.1.attention.self.key"]
    )
    estimate = estimate_parameters(tiny(), locate_model(tiny()), chosen, num_labels=2)
    assert estimate == count_parameters(adapted(chosen))


def test_estimate_of_roberta_base_from_its_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "roberta", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,'
        ' "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}'
    )
    files = ModelFiles("hub", tmp_path, "hub:roberta@0")
    roberta = tiny(random=None, head="mlp")
    assert estimate_parameters(roberta, files, adapter("full"), 2) == ParameterCount(124_647_170, 124_647_170)
    assert estimate_parameters(roberta, files, adapter("head"), 2) == ParameterCount(592_130, 124_647_170)


def test_config_without_a_shape_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "hidden_size": 768}')
    with pytest.raises(UsageError, match=r"config\.json: no vocab_size, .*pad_token_id"):
        estimate_parameters(tiny(random=None), ModelFiles("hub", tmp_path, "hub:x@0"), adapter("full"), 2)


def test_estimate_is_silent_about_other_architectures(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "distilbert", "dim": 768}')
    files = ModelFiles("hub", tmp_path, "hub:distilbert@0")
    assert estimate_parameters(tiny(random=None), files, adapter("full"), 2) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 129}, r"adapter\.rank=129 exceeds the rank of .*query, 128 x 128"),
        ({"rank": None}, r"adapter\.rank"),
        ({"target_modules": ["quarry"]}, r"adapter\.target_modules: .*'quarry'"),
        ({"target_modules": ["LayerNorm"]}, r"adapter\.target_modules: .*'LayerNorm'"),
    ],
)
def test_impossible_lora_is_refused_with_and_without_a_model(changes, message):
    with pytest.raises(UsageError, match=message):
        adapted(adapter("lora", **changes))
    with pytest.raises(UsageError, match=message):
        estimate_parameters(tiny(), locate_model(tiny()), adapter("lora", **changes), num_labels=2)


def test_nothing_to_train_is_refused():
    with pytest.raises(UsageError, match=r"adapter\.train_head"):
        adapted(adapter("head", train_head=False))


def test_unknown_adapter_is_refused():
    with pytest.raises(UsageError, match=r"adapter\.name: 'suffix'"):
        adapted(replace(adapter("full"), name="suffix"))


def test_full_fine_tuning_of_a_checkpoint_trains_no_pooler(tmp_path):
    shape: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**shape)).save_pretrained(tmp_path)
    word_piece_tokenizer().save_pretrained(tmp_path)
    model = adapted(adapter("full"), build(tiny(path=str(tmp_path))))
    assert not any("pooler" in name for name, _ in model.named_parameters())
