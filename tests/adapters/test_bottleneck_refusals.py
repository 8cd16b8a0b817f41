"""Bottleneck adapters in bare peft: what is refused, and that the message names the field, the module or the folder."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from peft import get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from support.tiny_causal import tiny
from test_bottleneck import OneLayer, adapted, linear
from torch import nn

from privlm.adapters.bottleneck import BottleneckConfig, BottleneckError, load

WRONG = {
    "neither": ({"placement": None}, "placement, wirings: one of both"),
    "both": ({"wirings": {"down_proj": "output"}, "placement": "adapter_p"}, "placement, wirings: one of both"),
    "placement": ({"placement": "adapter_x"}, r"placement is 'adapter_x'.*scaled_parallel"),
    "wiring": ({"wirings": {"down_proj": "behind"}}, r"wirings\['down_proj'\] is 'behind'.*input, output, parallel"),
    "size 0": ({"bottleneck_size": 0}, "bottleneck_size is 0"),
    "size of words": ({"bottleneck_size": "256"}, "bottleneck_size is '256'"),
    "activation": ({"activation": "tanhh"}, r"activation is 'tanhh'.*tanh"),
    "activation with parameters": ({"activation": "prelu"}, "activation is 'prelu'"),
    "scale": ({"scale": "learnt"}, "scale is 'learnt'.*'learned'"),
    "scale of scaled_parallel": ({"placement": "scaled_parallel", "scale": 2.0}, "scale: scaled_parallel learns"),
    "init": ({"init": "lora"}, "init is 'lora'.*bert, mam"),
    "dropout": ({"dropout": 1.0}, r"dropout is 1\.0"),
    "bias": ({"bias": "some"}, "bias is 'some'"),
    "targets": ({"wirings": {"down_proj": "output"}, "target_modules": ["up_proj"], "placement": None},
                "target_modules: the targets are the keys of wirings"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_setting_is_named(fault: str) -> None:
    settings, message = WRONG[fault]
    given = {"placement": "adapter_h", **settings} if fault not in ("wiring",) else settings
    with pytest.raises(BottleneckError, match=message):
        BottleneckConfig(**given)


def test_a_target_without_a_module_is_named_even_beside_others() -> None:
    with pytest.raises(NoMatchingPeftModuleError, match="wirings: no module of the model is named 'up_prj'"):
        adapted(wirings={"down_proj": "output", "up_prj": "input"})


def test_a_module_that_is_named_twice_is_refused() -> None:
    with pytest.raises(BottleneckError, match=r"layers\.0\.mlp\.up_proj is named by .*different wirings"):
        adapted(wirings={"up_proj": "input", "mlp.up_proj": "output"})


def test_what_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(BottleneckError, match=r"embed_tokens is of the class Embedding, not Linear or Conv1D"):
        adapted(wirings={"embed_tokens": "output"})


def test_quantised_weights_are_refused() -> None:
    layer = linear()
    layer.weight = nn.Parameter(torch.zeros(10, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(BottleneckError, match=r"layer holds quantised weights \(int8\); load the base in float32"):
        get_peft_model(OneLayer(layer), BottleneckConfig(wirings={"layer": "output"}))


def test_an_architecture_without_a_placement_says_what_to_give() -> None:
    with pytest.raises(BottleneckError, match=r"knows bloom, .*, not 'mpt'; give wirings="):
        BottleneckConfig(placement="adapter_p").place("mpt")


def test_folders_that_are_none_of_its_own_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BottleneckError, match=r"holds no adapter_config\.json"):
        load(tiny("llama"), tmp_path)
    get_peft_model(tiny("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(BottleneckError, match="is of the method LORA: load it with PeftModel"):
        load(tiny("llama"), tmp_path / "lora")
    adapted().save_pretrained(tmp_path / "own")
    with pytest.raises(BottleneckError, match="does not fit this base model"):
        load(tiny("llama", hidden_size=8), tmp_path / "own")
    with pytest.raises(BottleneckError, match="does not fit this base model"):
        load(tiny("gpt2"), tmp_path / "own")
    (tmp_path / "own" / "adapter_config.json").write_text("[]")
    with pytest.raises(BottleneckError, match="is not the configuration of a peft adapter"):
        load(tiny("llama"), tmp_path / "own")
