"""adapter=rgp on an encoder: what trains, the count without a model, saving, refusals."""

from itertools import product
from typing import Any

import pytest
import torch

from privlm.adapters.adapter import apply_adapter, count_parameters
from privlm.adapters.estimate import ParameterCount, estimate_parameters, held_in_memory
from privlm.config import AdapterConfig, ModelConfig, defaults
from privlm.errors import UsageError
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier
from privlm.models.locate import locate_model
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.rgp import Reparametrization, ReparametrizedLinear


def rgp(**changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", "rgp", **changes)


def tiny(**changes: Any) -> ModelConfig:
    shape = {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 2,
    }  # fmt: skip
    values: dict[str, Any] = dict.fromkeys(ModelConfig.__dataclass_fields__) | {
        "name": "tiny", "sha256": {}, "random": shape | changes, "pooling": "mean", "normalize_features": False,
        "head": "linear", "dropout": 0.0, "max_length": 16, "pretrained_on": [],
    }  # fmt: skip
    return ModelConfig(**values)


def build(config: AdapterConfig, model: ModelConfig | None = None) -> EncoderClassifier:
    model = model or tiny()
    classifier, _ = build_encoder_classifier(model, locate_model(model), 2, seed=0)
    classifier.encoder = apply_adapter(classifier.encoder, config, seed=0, head=classifier.head)
    return classifier


def token_ids() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 1400, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("other_params", ["train", "freeze"])
@pytest.mark.parametrize("train_head", [True, False])
def test_factors_train_and_the_rest_as_asked(other_params: str, train_head: bool) -> None:
    model = build(rgp(other_params=other_params, train_head=train_head))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {name for name in trained if name.endswith(("left.weight", "right.weight"))}
    vectors = {name for name, parameter in model.encoder.named_parameters("encoder") if parameter.ndim == 1}
    head = set(dict(model.head.named_parameters("head")))
    assert len(factors) == 2 * 6 * 2
    assert trained == factors | (vectors if other_params == "train" else set()) | (head if train_head else set())


def test_optimizer_steps_the_weights_and_never_the_embeddings() -> None:
    model = build(rgp())
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    stepped = Reparametrization(model).stepped(trainable)
    assert "encoder.encoder.layer.0.attention.self.query.weight" in stepped
    assert not [name for name in stepped if "left" in name or "right" in name or name.endswith("embeddings.weight")]


def test_starts_at_the_pretrained_function() -> None:
    plain = build(defaults(AdapterConfig, "adapter", "full"))
    torch.testing.assert_close(build(rgp()).train()(**token_ids()), plain(**token_ids()))


@pytest.mark.parametrize(
    ("model_type", "rank", "other_params", "target_modules"),
    list(product(["bert", "roberta"], [1, 4], ["train", "freeze"], [None, ["query", "output.dense"]])),
)
def test_estimate_equals_the_count(
    model_type: str, rank: int, other_params: str, target_modules: list[str] | None
) -> None:
    config = tiny(model_type=model_type)
    adapter = rgp(rank=rank, other_params=other_params, target_modules=target_modules)
    model = build(adapter, config)
    count = estimate_parameters(config, locate_model(config), adapter, num_labels=2)
    assert count == count_parameters(model)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = sum(layer.initial.numel() for layer in model.modules() if isinstance(layer, ReparametrizedLinear))
    assert held_in_memory(config, locate_model(config), adapter, count) == ParameterCount(
        sum(parameter.numel() for parameter in Reparametrization(model).stepped(trainable).values()),
        count.total + kept,
    )


def test_engine_clips_an_encoder_under_rgp() -> None:
    model = build(rgp(rank=2)).train()
    Reparametrization(model).choose_factors(seed=0, step=1)
    engine = PrivacyEngine(model, clipping_norm=0.5)
    statistics = engine.backward(lambda model, batch: model(**batch).square().sum(1), token_ids())
    assert statistics.num_nonfinite == 0
    assert (statistics.norms > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 33}, r"adapter\.rank=33 exceeds the rank of .*query, 32 x 32"),
        ({"rank": None}, r"adapter\.rank, adapter\.power_iterations, adapter\.other_params"),
        ({"power_iterations": None}, r"adapter\.power_iterations"),
        ({"target_modules": ["word_embeddings"]}, r"adapter\.target_modules: no Linear layer is named"),
    ],
)
def test_impossible_settings_are_refused_with_and_without_a_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(rgp(**changes))
    with pytest.raises(UsageError, match=message):
        estimate_parameters(tiny(), locate_model(tiny()), rgp(**changes), num_labels=2)
