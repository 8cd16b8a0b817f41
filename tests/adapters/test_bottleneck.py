"""Bottleneck adapters in bare peft: their formulas, what is saved of them, what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from support.tiny_causal import disturb, tiny
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from privlm.adapters.bottleneck import (
    PEFT_TYPE,
    BottleneckConfig,
    BottleneckLayer,
    MergeError,
    activations,
    load,
)  # fmt: skip
from privlm.adapters.schema import ACTIVATIONS

IDS = torch.arange(3, 23).reshape(2, 10)
METHODS = ("adapter_h", "adapter_p", "parallel", "scaled_parallel")


def adapted(base: Any = None, placement: str | None = "adapter_h", **settings: Any) -> Any:
    if "wirings" in settings:
        placement = None
    settings = {"bottleneck_size": 4, "task_type": "CAUSAL_LM", "placement": placement} | settings
    torch.manual_seed(0)
    return get_peft_model(base if base is not None else tiny("llama"), BottleneckConfig(**settings)).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 10)


def square() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 6)


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(10, 6)


def reference(layer: nn.Module, wiring: str, down: Tensor, up: Tensor, f: Any, scale: float, x: Tensor) -> Tensor:
    """The three formulas; weights of all three layers as [outputs, inputs]."""
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight

    def branch(z: Tensor) -> Tensor:
        return (scale * (f(z.float() @ down.T) @ up.T)).to(z.dtype)

    if wiring == "input":
        return (x + branch(x)) @ weight.T + layer.bias
    h = x @ weight.T + layer.bias
    return h + branch(h if wiring == "output" else x)


@pytest.mark.parametrize("make", [linear, square, conv1d])
@pytest.mark.parametrize("wiring", ["input", "output", "parallel"])
@pytest.mark.parametrize(("activation", "scale"), [("tanh", 1), ("relu", -0.5), ("gelu", "learned")])
def test_forward_is_the_formula(make: Any, wiring: str, activation: str, scale: Any) -> None:
    model = get_peft_model(
        OneLayer(make()),
        BottleneckConfig(wirings={"layer": wiring}, bottleneck_size=3, activation=activation, scale=scale),
    )
    layer: Any = disturb(model).base_model.model.layer
    down, up = (modules["default"].weight for modules in (layer.bottleneck_down, layer.bottleneck_up))
    factor = layer.bottleneck_scale["default"].weight if scale == "learned" else scale
    num_outputs = 6 if make is square else 10
    assert tuple(down.shape) == (3, num_outputs if wiring == "output" else 6)
    assert tuple(up.shape) == (6 if wiring == "input" else num_outputs, 3)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        model(x), reference(make(), wiring, down, up, ACT2FN[activation], factor, x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("wiring", ["input", "output", "parallel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_branch_of_a_base_of_half_precision_is_float32(wiring: str, dtype: torch.dtype) -> None:
    config = BottleneckConfig(wirings={"layer": wiring})
    model = disturb(get_peft_model(OneLayer(linear().to(dtype)), config, autocast_adapter_dtype=False))
    layer: Any = model.base_model.model.layer
    down, up = (modules["default"].weight for modules in (layer.bottleneck_down, layer.bottleneck_up))
    assert down.dtype == up.dtype == torch.float32
    inner: list[Tensor] = []
    layer.bottleneck_up["default"].register_forward_hook(lambda module, args, output: inner.append(output))
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
    y = model(x)
    assert {tensor.dtype for tensor in inner} == {torch.float32}
    assert y.dtype == dtype
    expected = reference(linear().to(dtype), wiring, down, up, torch.tanh, 1.0, x)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


def test_a_model_that_was_cast_as_a_whole_computes_in_its_own_precision() -> None:
    model = disturb(adapted())
    expected = logits(model)
    found = logits(model.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


def test_init_mam_is_the_base_at_first_and_bert_is_not() -> None:
    base = logits(tiny("llama"))
    assert torch.equal(logits(adapted(init="mam")), base)
    bert = adapted(placement="parallel", bottleneck_size=256)
    assert not torch.equal(logits(bert), base)
    drawn = torch.cat([p.detach().flatten() for p in bert.parameters() if p.requires_grad])
    assert abs(float(drawn.std()) - 0.02) < 3e-4
    assert abs(float(drawn.mean())) < 3e-4


@pytest.mark.parametrize("placement", METHODS)
def test_disabled_and_unloaded_the_model_is_its_base_bit_for_bit(placement: str) -> None:
    model, base = disturb(adapted(placement=placement)), logits(tiny("llama"))
    trained = logits(model)
    assert not torch.allclose(trained, base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), trained)
    unloaded = model.unload()
    assert type(unloaded) is type(tiny("llama"))
    assert torch.equal(logits(unloaded), base)
    assert not any(isinstance(module, BottleneckLayer) for module in unloaded.modules())
    assert unloaded.state_dict().keys() == tiny("llama").state_dict().keys()


@pytest.mark.parametrize("placement", METHODS)
def test_saved_are_adapter_tensors_alone_and_they_come_back_bit_for_bit(placement: str, tmp_path: Path) -> None:
    model = disturb(adapted(placement=placement))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.replace(".default", "") for name in trained} == tensors.keys()
    assert all(".bottleneck_" in name for name in tensors)
    assert any("bottleneck_scale" in name for name in tensors) == (placement == "scaled_parallel")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    wide = adapted(placement=placement, bottleneck_size=256)
    wide.save_pretrained(tmp_path / "wide")
    content = sum(4 * parameter.numel() for parameter in wide.parameters() if parameter.requires_grad)
    assert (tmp_path / "wide" / "adapter_model.safetensors").stat().st_size < 2 * content
    assert size == sum(4 * parameter.numel() for parameter in trained.values())
    for again in (PeftModel.from_pretrained(tiny("llama"), str(tmp_path)), load(tiny("llama"), tmp_path)):
        assert torch.equal(logits(again), logits(model))
        assert not any(parameter.requires_grad for parameter in again.parameters())
    on = load(tiny("llama"), tmp_path, is_trainable=True)
    assert {name for name, parameter in on.named_parameters() if parameter.requires_grad} == trained.keys()


def test_modules_to_save_are_trained_and_saved_whole(tmp_path: Path) -> None:
    model = disturb(adapted(placement="adapter_p", modules_to_save=["lm_head"]))
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(logits(load(tiny("llama"), tmp_path)), logits(model))


def test_gradients_reach_the_adapter_and_modules_to_save_alone() -> None:
    model = adapted(placement="scaled_parallel", modules_to_save=["lm_head"]).train()
    model(input_ids=IDS).logits.square().mean().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".bottleneck_" in name or "modules_to_save" in name for name in with_gradient)
    assert any("bottleneck_scale" in name for name in with_gradient)


@pytest.mark.parametrize(("bias", "number"), [("none", 0), ("adapter_only", 2), ("all", 12)])
def test_bias_of_the_base_trains_where_asked(bias: str, number: int) -> None:
    model = adapted(tiny("opt"), placement="adapter_p", bias=bias)
    biases = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "bias" in name]
    assert len(biases) >= number
    assert (len(biases) == number) or bias == "all"
    assert all("fc2" in name for name in biases) or bias == "all"


def test_gradients_under_activation_checkpointing_are_the_same() -> None:
    found = []
    for checkpointing in (False, True):
        model = disturb(adapted(placement="scaled_parallel")).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_learned_scale_starts_at_one_and_trains() -> None:
    model = adapted(placement="scaled_parallel").train()
    scales = [parameter for name, parameter in model.named_parameters() if "bottleneck_scale" in name]
    assert len(scales) == 6
    assert all(torch.equal(scale, torch.ones(())) for scale in scales)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert not any(torch.equal(scale, torch.ones(())) for scale in scales)


def test_several_adapters_take_turns_and_add_up() -> None:
    model = disturb(adapted(placement="adapter_p"))
    first = logits(model)
    model.add_adapter("second", BottleneckConfig(placement="adapter_h", bottleneck_size=3, task_type="CAUSAL_LM"))
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    disturb(model)
    second = logits(model)
    assert not torch.equal(second, first)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".second." in name for name in trained)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not torch.equal(both, first)
    assert not torch.equal(both, second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits(model), first)
    assert not any(".second." in name for name in model.state_dict())


def test_generating_with_a_cache_gives_what_it_gives_without() -> None:
    model = disturb(adapted(placement="adapter_h"), std=0.5)
    base = tiny("llama").generate(IDS, max_new_tokens=12, do_sample=False, pad_token_id=0)
    found = [model.generate(input_ids=IDS, max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=cached)
             for cached in (True, False)]  # fmt: skip
    assert torch.equal(*found)
    assert not torch.equal(found[0], base)


def test_merging_names_unload_and_changes_nothing() -> None:
    model = disturb(adapted(modules_to_save=["embed_tokens"]))
    before, names = logits(model), model.state_dict().keys()
    for merge in (model.merge_and_unload, model.merge_adapter, model.unmerge_adapter):
        with pytest.raises(MergeError, match=r"unload\(\)"):
            merge()
        assert model.state_dict().keys() == names
    assert torch.equal(logits(model), before)


def test_training_mode_can_be_chained() -> None:
    layer = next(module for module in adapted().modules() if isinstance(module, BottleneckLayer))
    assert layer.train().eval() is layer


def test_dropout_is_of_training_alone() -> None:
    model = disturb(adapted(dropout=0.5))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_the_mlp_s_projection_of_gpt2_is_meant_and_not_attention_s() -> None:
    model = adapted(tiny("gpt2"), placement="adapter_p")
    names = [name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)]
    assert [name.split(".h.")[1] for name in names] == ["0.mlp.c_proj", "1.mlp.c_proj"]


def test_activations_of_the_schema_are_those_of_transformers_without_parameters() -> None:
    assert activations() == ACTIVATIONS
    assert not any(list(ACT2FN[name].parameters()) for name in ACTIVATIONS)


def test_the_method_is_a_member_like_any_other() -> None:
    assert PEFT_TYPE is PeftType.BOTTLENECK is PeftType("BOTTLENECK") is PeftType["BOTTLENECK"]
    assert PEFT_TYPE in list(PeftType)
    assert pickle.loads(pickle.dumps(PEFT_TYPE)) is copy.deepcopy(PEFT_TYPE) is PEFT_TYPE


OF_THE_FUTURE = """
import sys
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from privlm.adapters.enum_member import add_member
PEFT_TYPE_TO_CONFIG_MAPPING[add_member(PeftType, "BOTTLENECK")] = PeftConfig  # as a peft that has such a method
from privlm.adapters.bottleneck import PEFT_TYPE, load
from support.tiny_causal import tiny
import torch
assert PEFT_TYPE == "PRIVLM_BOTTLENECK" and PEFT_TYPE_TO_CONFIG_MAPPING["BOTTLENECK"] is PeftConfig
model = load(tiny("llama"), sys.argv[1])
model.save_pretrained(sys.argv[1] + "/again")
print(float(model(input_ids=torch.arange(3, 23).reshape(2, 10)).logits.double().sum()))
"""


def run_alone(code: str, *words: Any) -> str:
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, words)],
        cwd=tests, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.medium
def test_a_peft_that_has_the_name_already_leaves_us_another(tmp_path: Path) -> None:
    model = disturb(adapted())
    model.save_pretrained(tmp_path)
    assert float(run_alone(OF_THE_FUTURE, tmp_path).splitlines()[-1]) == float(logits(model).double().sum())
    assert '"PRIVLM_BOTTLENECK"' in (tmp_path / "again" / "adapter_config.json").read_text()
    assert torch.equal(logits(load(tiny("llama"), tmp_path / "again")), logits(model))
