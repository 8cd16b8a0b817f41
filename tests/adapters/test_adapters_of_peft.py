"""LoRA, DoRA, IA3, bottlenecks, virtual tokens, as `adapter` chooses them: what trains, merges, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support.tiny_causal import disturb, tiny
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from privlm.adapters.adapter import ADAPTERS, apply_adapter, count_parameters, merge_adapter
from privlm.adapters.bottleneck import BottleneckLayer, MergeError
from privlm.adapters.estimate import estimate_parameters
from privlm.adapters.presets import LORA_EMNLP
from privlm.adapters.targets import fused_note
from privlm.config import AdapterConfig, defaults
from privlm.errors import UsageError
from privlm.models.causal import random_causal_lm
from privlm.models.locate import locate_model
from privlm.models.saving import save_trained
from privlm.models.schema import CausalLMConfig

IDS = torch.arange(3, 23).reshape(2, 10)
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"rank": 2, "dropout": 0.0} for name in ("lora", "lora_emnlp", "dora")},
    **{name: {"bottleneck_size": 4} for name in ("adapter_h", "adapter_p", "parallel", "scaled_parallel")},
    "ia3": {}, "prefix": {"num_virtual_tokens": 3}, "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip
MARKS = {"lora": "lora_", "lora_emnlp": "lora_", "dora": "lora_", "ia3": "ia3_", "prefix": "prompt_encoder",
         "prompt": "prompt_encoder"}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def adapter(name: str, **changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", name, **{**SMALL.get(name, {}), **changes})


def adapted(name: str, architecture: str = "llama", seed: int = 0, **changes: Any) -> Any:
    return apply_adapter(tiny(architecture), adapter(name, **changes), seed).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


def encoder() -> BertModel:
    torch.manual_seed(0)
    shape: Any = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=50, **shape)).eval()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("architecture", ["llama", "bloom", "gptj", "opt", "gpt2", "gpt_neox"])
def test_the_adapter_alone_trains_and_changes_the_model(name: str, architecture: str) -> None:
    model = adapted(name, architecture)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(MARKS.get(name, "bottleneck_") in key for key in trained)
    disturb(model)(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.square().mean().backward()
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert not torch.allclose(logits(model), logits(tiny(architecture)), atol=1e-3)


@pytest.mark.parametrize("name", [*SMALL, "none"])
def test_values_come_from_the_seed_and_the_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, same, other = (logits(disturb(adapted(name, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, same)
    assert torch.equal(first, other) == (name in ("ia3", "none"))


def test_nothing_trains_under_none() -> None:
    model = adapted("none")
    assert count_parameters(model).trainable == 0
    with pytest.raises(UsageError, match=r"adapter\.train_head=true: adapter=none trains nothing"):
        adapted("none", train_head=True)


@pytest.mark.parametrize("name", ["lora", "lora_emnlp", "dora", "ia3"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_what_is_linear_merges_into_the_weights(name: str, architecture: str) -> None:
    model = disturb(adapted(name, architecture))
    expected = logits(model)
    merged = merge_adapter(model)
    assert type(merged) is type(tiny(architecture))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["adapter_h", "adapter_p", "parallel", "scaled_parallel", "prefix", "prompt"])
def test_what_no_weight_holds_is_not_merged_and_stays_as_it_is(name: str) -> None:
    model = disturb(adapted(name))
    before = logits(model)
    with pytest.raises(MergeError, match="save_pretrained"):
        merge_adapter(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_run_saves_is_read_by_peft_itself(name: str, tmp_path: Path) -> None:
    model = disturb(adapted(name))
    save_trained(model, tmp_path, digest="0" * 64)
    again = PeftModel.from_pretrained(tiny("llama"), str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("architecture", sorted(LORA_EMNLP))
def test_lora_of_the_emnlp_version_adapts_attention_and_mlp(architecture: str) -> None:
    model = adapted("lora_emnlp", architecture)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * len(LORA_EMNLP[architecture])
    assert defaults(AdapterConfig, "adapter", "lora_emnlp").rank == 32
    assert defaults(AdapterConfig, "adapter", "lora_emnlp").alpha == 64


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "gpt_neox"])
def test_lora_of_fused_queries_and_values_leaves_the_third_between_alone(architecture: str) -> None:
    model = disturb(adapted("lora", architecture, fused_qkv="qv"))
    whole = adapted("lora", architecture)
    assert count_parameters(model) == count_parameters(whole)
    expected = logits(model)
    layers = [module for module in model.modules() if hasattr(module, "lora_B")]
    deltas = [layer.get_delta_weight("default") for layer in layers]
    for delta in deltas:
        rows = delta.T if architecture == "gpt2" else delta
        first, between, last = rows.chunk(3)
        assert torch.count_nonzero(between) == 0
        assert min(first.norm(), last.norm()) > 0.1
        assert torch.linalg.matrix_rank(rows) == 4  # 2 for each of the two
    torch.testing.assert_close(logits(merge_adapter(model)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lora", "lora_emnlp"])
def test_fused_queries_and_values_are_counted_without_a_model(name: str) -> None:
    shape: dict[str, Any] = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    model = defaults(CausalLMConfig, "model", "smollm2", package=None, gguf_file=None, random=shape)
    chosen = adapter(name, fused_qkv="qv")
    count = count_parameters(apply_adapter(random_causal_lm(shape), chosen, 0))
    assert estimate_parameters(model, locate_model(model), chosen) == count


def test_what_lora_adapts_of_a_fused_layer_is_told() -> None:
    assert fused_note(adapter("lora", fused_qkv="qv"), "bloom") == (
        "LoRA adapts the first and the last third of the outputs of query_key_value (adapter.fused_qkv=qv)"
    )
    assert "all outputs of c_attn" in (fused_note(adapter("lora_emnlp"), "gpt2") or "")
    assert fused_note(adapter("lora"), "llama") is None
    assert fused_note(adapter("parallel"), "bloom") is None


def test_lora_of_fused_queries_and_values_starts_at_the_base() -> None:
    assert torch.equal(logits(adapted("lora", "gpt2", fused_qkv="qv")), logits(tiny("gpt2")))


def test_targets_of_one_wiring_can_be_named_alone() -> None:
    model = adapted("parallel", target_modules=["up_proj", "down_proj"])
    found = {name.rpartition(".")[2]: module.wiring["default"] for name, module in model.named_modules()
             if isinstance(module, BottleneckLayer)}  # fmt: skip
    assert found == {"up_proj": "parallel", "down_proj": "parallel"}


def test_bottlenecks_stand_in_an_encoder_by_the_modules_that_are_named() -> None:
    chosen = adapter("adapter_h", wirings={"intermediate.dense": "input", "query": "parallel"})
    model: Any = disturb(apply_adapter(encoder(), chosen, 0))
    assert sum(isinstance(module, BottleneckLayer) for module in model.modules()) == 4
    assert not torch.allclose(model(IDS).last_hidden_state, encoder()(IDS).last_hidden_state, atol=1e-3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rank": ("dora", {"rank": 17}, r"adapter\.rank=17 exceeds the rank of .*q_proj, 16 x 16"),
    "no rank": ("lora_emnlp", {"rank": None}, r"adapter\.rank, adapter\.alpha, adapter\.dropout: adapter=lora_emnlp"),
    "target of lora": ("lora", {"target_modules": ["q_prj"]}, r"adapter\.target_modules: .*'q_prj'"),
    "target of dora": ("dora", {"target_modules": ["embed_tokens"]}, r"adapter\.target_modules: .*'embed_tokens'"),
    "target of ia3": ("ia3", {"target_modules": ["norm"]}, r"adapter\.target_modules: no Linear layer .*'norm'"),
    "fused": ("lora", {"fused_qkv": "qv"}, r"adapter\.fused_qkv=qv: no target of llama holds"),
    "fused dora": ("dora", {"fused_qkv": "qv"}, r"adapter\.fused_qkv=qv: adapter=dora"),
    "target of a bottleneck": ("parallel", {"target_modules": ["qq"]}, r"adapter\.wirings: no Linear layer .*'qq'"),
    "wirings and targets": ("adapter_p", {"wirings": {"up_proj": "input"}, "target_modules": ["up_proj"]},
                            r"adapter\.target_modules, adapter\.wirings: give one"),
    "targets of two wirings": ("adapter_h", {"target_modules": ["up_proj"]},
                               r"adapter=adapter_h has more than one wiring; give adapter\.wirings=\{up_proj: WIR"),
    "one module twice": ("adapter_p", {"wirings": {"up_proj": "input", "mlp.up_proj": "output"}},
                         r"adapter\.wirings: .*up_proj is named twice, as input and as output"),
    "no size": ("parallel", {"bottleneck_size": None}, r"adapter\.bottleneck_size, adapter\.activation, .*=parallel"),
    "no tokens": ("prefix", {"num_virtual_tokens": None}, r"adapter\.num_virtual_tokens: adapter=prefix needs it"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_impossible_settings_are_refused_with_and_without_a_model(fault: str) -> None:
    name, changes, message = REFUSED[fault]
    model = defaults(CausalLMConfig, "model", "smollm2", package=None, gguf_file=None, random=LLAMA)
    with pytest.raises(UsageError, match=message):
        adapted(name, **changes)
    with pytest.raises(UsageError, match=message):
        estimate_parameters(model, locate_model(model), adapter(name, **changes))


def test_a_wrong_value_is_refused_by_its_field() -> None:
    for field, value in {"activation": "tanhh", "scale": "learnt", "init": "lora", "bottleneck_size": 0}.items():
        with pytest.raises(UsageError, match=rf"adapter\.{field} is"):
            adapted("parallel", **{field: value})


def test_an_architecture_without_a_preset_is_told_the_remedy() -> None:
    for name in ("adapter_h", "parallel"):
        with pytest.raises(
            UsageError, match=rf"adapter={name} has a preset for bloom, .*'bert'; give adapter\.wirings="
        ):
            apply_adapter(encoder(), adapter(name), 0)
    for name in ("lora_emnlp", "ia3"):
        with pytest.raises(UsageError, match=r"adapter\.target_modules: no preset.* for 'Sequential'; list the m"):
            apply_adapter(nn.Sequential(nn.Linear(4, 4)), adapter(name), 0)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_virtual_tokens_need_a_causal_language_model(name: str) -> None:
    for model in (encoder(), nn.Sequential(nn.Linear(4, 4))):
        with pytest.raises(UsageError, match=f"adapter={name}: .* is no causal language model"):
            apply_adapter(model, adapter(name), 0)


def test_quantised_weights_are_refused_by_name() -> None:
    base: Any = tiny("llama")
    layer = base.model.layers[1].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match=r"adapter\.wirings: .*layers\.1\.mlp\.down_proj holds quantised weights"):
        apply_adapter(base, adapter("adapter_p"), 0)


def test_every_adapter_has_its_small_settings_here() -> None:
    assert SMALL.keys() | {"none", "full", "head", "rgp"} == ADAPTERS.keys()
    assert isinstance(adapted("prompt"), PeftModel)
