"""Adapters of causal language models and of any torch model: what trains, what is refused, the count by shape."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.pytorch_utils import Conv1D

from privlm.adapters.adapter import apply_adapter, count_parameters
from privlm.adapters.estimate import ParameterCount, estimate_parameters, held_in_memory
from privlm.adapters.presets import IA3
from privlm.adapters.presets import LORA as PRESETS
from privlm.config import AdapterConfig, defaults
from privlm.errors import UsageError
from privlm.models.causal import random_causal_lm
from privlm.models.locate import ModelFiles, locate_model
from privlm.models.schema import CausalLMConfig
from privlm.privacy.rgp import Reparametrization, ReparametrizedLinear

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}
SHAPES = {
    "llama": LLAMA,
    "llama of few keys": LLAMA | {"num_key_value_heads": 2, "head_dim": 16},
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "tied llama": LLAMA | {"tie_word_embeddings": True},
    "gpt2": GPT2,
    "gpt2 by common names": {"model_type": "gpt2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                             "max_position_embeddings": 40},
    "untied gpt2": GPT2 | {"tie_word_embeddings": False, "n_inner": 40},
    "mistral": LLAMA | {"model_type": "mistral", "num_key_value_heads": 2},
    "tied qwen2": LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "gptj": {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8},
    "gpt_neox": LLAMA | {"model_type": "gpt_neox"},
    "opt": {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 40},
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 1, "n_head": 2}, "falcon": {"num_hidden_layers": 1, "num_attention_heads": 2},
    "gptj": {"n_layer": 1, "n_head": 2, "n_embd": 32, "rotary_dim": 8},
    "gpt_neo": {"num_layers": 1, "attention_types": [[["global"], 1]], "num_heads": 2},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 32}, "gemma": {"head_dim": 16}, "gemma2": {"head_dim": 16},
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "xlm-roberta": {}, "camembert": {}, "electra": {}, "xlm-roberta-xl": {}, "mpnet": {},
    "roberta-prelayernorm": {}, "deberta": {}, "deberta-v2": {}, "modernbert": {}, "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "t5": {"d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
    "mt5": {"d_model": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
}  # fmt: skip


def adapter(name: str, **changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", name, **changes)


def causal(shape: dict[str, Any]) -> CausalLMConfig:
    return defaults(CausalLMConfig, "model", "smollm2", package=None, gguf_file=None, random=shape)


def plain() -> nn.Module:
    """A body and a head of a user's own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


BOTTLENECKS = ("adapter_h", "adapter_p", "parallel", "scaled_parallel")
COUNTED: list[tuple[str, dict[str, Any]]] = [
    ("full", {}),
    ("none", {}),
    ("lora", {}),
    ("lora", {"target_modules": ["lm_head"], "rank": 3}),
    ("lora_emnlp", {"rank": 3}),
    ("dora", {}),
    ("dora", {"target_modules": ["lm_head"], "rank": 3}),
    ("ia3", {}),
    ("ia3", {"target_modules": ["lm_head"]}),
    ("rgp", {"rank": 2}),
    ("rgp", {"other_params": "freeze"}),
    *((name, {"bottleneck_size": 3}) for name in BOTTLENECKS),
    ("adapter_p", {"scale": "learned", "bottleneck_size": 5}),
    ("adapter_h", {"wirings": {"lm_head": "output"}}),
    ("parallel", {"target_modules": ["lm_head"]}),
    ("prefix", {}),
    ("prompt", {"num_virtual_tokens": 3}),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "changes"), COUNTED)
def test_estimate_equals_the_count(shape: str, name: str, changes: dict[str, Any]) -> None:
    config, chosen = causal(SHAPES[shape]), adapter(name, **changes)
    files = locate_model(config)
    if name == "rgp" and "gpt2" in shape:
        for attempt in (
            lambda: estimate_parameters(config, files, chosen),
            lambda: apply_adapter(random_causal_lm(SHAPES[shape]), chosen, seed=0),
        ):
            with pytest.raises(UsageError, match="adapter=rgp: the model has no Linear layer"):
                attempt()
        return
    model = apply_adapter(random_causal_lm(SHAPES[shape]), chosen, seed=0)
    count = estimate_parameters(config, files, chosen)
    assert count == count_parameters(model)
    trains = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    stepped = Reparametrization(model).stepped(trains).values()
    kept = sum(layer.initial.numel() for layer in model.modules() if isinstance(layer, ReparametrizedLinear))
    expected = ParameterCount(sum(parameter.numel() for parameter in stepped), count.total + kept)
    assert held_in_memory(config, files, chosen, count) == expected


def test_estimate_is_silent_about_other_causal_language_models(tmp_path: Any) -> None:
    for shape in ({"model_type": "opt"}, SHAPES["opt"] | {"word_embed_proj_dim": 16}, {"model_type": "mpt"}):
        assert estimate_parameters(causal(shape), locate_model(causal({"a": 1})), adapter("full")) is None
    packed = ModelFiles("path", tmp_path, "sha256:none", "weights.gguf")
    assert estimate_parameters(causal(LLAMA), packed, adapter("full")) is None


OF_PIPELINES = {"UNet2DConditionModel", "clip_text_model"}  # tests/diffusion/test_lora_files.py


@pytest.mark.parametrize("architecture", sorted(PRESETS.keys() - ENCODERS.keys() - OF_PIPELINES))
def test_preset_names_modules_that_the_architecture_has(architecture: str) -> None:
    shape = {"model_type": architecture, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, **SMALL.get(architecture, {})}  # fmt: skip
    if "n_embd" in shape or "num_layers" in shape or "n_layer" in shape:
        shape = {key: value for key, value in shape.items() if key not in ("num_hidden_layers", "num_attention_heads")}
    model = apply_adapter(random_causal_lm(shape), adapter("lora", rank=2), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * len(PRESETS[architecture])


@pytest.mark.parametrize(
    ("name", "architecture"), [*product(["lora"], ENCODERS), *product(["ia3"], sorted(ENCODERS.keys() & IA3.keys()))]
)
def test_preset_names_modules_that_the_encoder_has(name: str, architecture: str) -> None:
    common = {"vocab_size": 50, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 32}  # fmt: skip
    shape = AutoConfig.for_model(architecture, **{**common, **ENCODERS[architecture]})
    chosen = adapter(name, rank=2) if name == "lora" else adapter(name)
    model = apply_adapter(AutoModel.from_config(shape), chosen, seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    targets = PRESETS[architecture] if name == "lora" else [target for part in IA3[architecture] for target in part]
    for target in targets:
        assert any(f".{target}." in key for key in trained), target


@pytest.mark.parametrize("shape", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_lora_starts_at_the_model_s_own_function_and_merges_exactly(shape: dict[str, Any]) -> None:
    ids = torch.arange(5, 25).reshape(2, 10)
    model: Any = apply_adapter(random_causal_lm(shape), adapter("lora"), seed=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, random_causal_lm(shape)(input_ids=ids).logits)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        expected = model(input_ids=ids).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_lora_of_conv1d_beside_linear_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    model = apply_adapter(random_causal_lm(GPT2), adapter("lora", target_modules=["c_attn", "lm_head"]), seed=0)
    assert any(isinstance(module, Conv1D) for module in model.modules())
    assert not [str(warning.message) for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


@pytest.mark.parametrize("shape", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_model_without_a_head_is_refused_by_name(shape: dict[str, Any]) -> None:
    message = f"adapter=head: {shape['model_type']} has no head"
    with pytest.raises(UsageError, match=message):
        apply_adapter(random_causal_lm(shape), adapter("head"), seed=0)
    with pytest.raises(UsageError, match=message):
        estimate_parameters(causal(shape), locate_model(causal(shape)), adapter("head"))


def test_rgp_leaves_embedding_and_logits_alone() -> None:
    model: Any = apply_adapter(random_causal_lm(LLAMA | {"tie_word_embeddings": True}), adapter("rgp"), seed=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not model.lm_head.weight.requires_grad
    assert isinstance(model.model.layers[1].mlp.up_proj, ReparametrizedLinear)


def test_rgp_refuses_a_weight_that_two_layers_share() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(UsageError, match="adapter=rgp: 0 shares its weight"):
        apply_adapter(model, adapter("rgp"), seed=0)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("head", {}, ["2.weight", "2.bias"]),
        ("full", {}, ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("full", {"train_head": False}, ["0.weight", "0.bias"]),
        ("rgp", {}, ["0.bias", "0.right.weight", "0.left.weight", "2.weight", "2.bias"]),
        ("lora", {"rank": 2, "target_modules": ["0"]}, ["0.lora_A", "0.lora_B", "2.weight", "2.bias"]),
    ],
)
def test_any_torch_model_trains_what_its_adapter_says(name: str, changes: dict[str, Any], expected: list[str]) -> None:
    model = plain()
    adapted = apply_adapter(model, adapter(name, **changes), seed=0, head=model[2])  # type: ignore[index]
    adapted(torch.ones(2, 6)).sum().backward()
    trains = [key for key, parameter in adapted.named_parameters() if parameter.requires_grad]
    short = [key.removeprefix("base_model.model.").replace(".default.weight", "") for key in trains]
    assert short == expected
    if name != "rgp":  # whose factors get gradients in train mode, once they are chosen
        assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


def test_unknown_architecture_asks_for_the_modules() -> None:
    with pytest.raises(UsageError, match=r"adapter\.target_modules: no preset for 'Sequential'"):
        apply_adapter(plain(), adapter("lora"), seed=0)
