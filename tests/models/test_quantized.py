"""Packed weights below an adapter: what is refused, and with bitsandbytes that they compute and count alike."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.composed import composed

from privlm.errors import UsageError
from privlm.models import quantized
from privlm.models.quantized import BESIDE, CONFIGS, require_quantizable, shape_of
from privlm.models.schema import QUANTIZATIONS


def model(*words: str) -> Any:
    return composed("task=llm_adapters", "model=smollm2", *words).model


@pytest.mark.torch_free
def test_options_are_what_serves_them() -> None:
    assert tuple(CONFIGS) == QUANTIZATIONS


@pytest.mark.torch_free
def test_what_cannot_be_packed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    require_quantizable(model(), "full")  # nothing is asked for
    packed = model("model.quantization=int8")
    monkeypatch.setattr(quantized, "require_packages", lambda by, *names, extra: None)
    for adapter in BESIDE:
        require_quantizable(packed, adapter)
    for adapter in ("full", "rgp", "parallel", "dora"):
        with pytest.raises(
            UsageError, match=rf"model\.quantization=int8: adapter={adapter} .* choose one of none, lora"
        ):
            require_quantizable(packed, adapter)
    at_random = composed("task=llm_adapters", "model=tiny_lm", "model.quantization=int8").model
    with pytest.raises(UsageError, match="weights at random are not packed"):
        require_quantizable(at_random, "lora")
    monkeypatch.setattr(quantized, "_has_cuda", lambda: False)
    with pytest.raises(UsageError, match=r"rounds packed weights anew .* choose int8"):
        require_quantizable(model("model.quantization=nf4"), "lora")


@pytest.mark.torch_free
@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_the_package_it_says_how_to_install_it() -> None:
    with pytest.raises(UsageError, match=r"needs bitsandbytes: pip install 'privlm\[quantized\]'"):
        require_quantizable(model("model.quantization=int8"), "lora")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quantized)")
def test_int8_weights_compute_and_count_as_those_they_were_made_of(tmp_path: Path) -> None:
    import torch
    from support.tiny_causal import tiny

    from privlm.adapters.adapter import count_parameters
    from privlm.adapters.load import load_causal_lm
    from privlm.models.byte_level import byte_tokenizer

    tokenizer = byte_tokenizer()
    tiny("llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = (f"model.path={tmp_path}", "model.max_length=32")
    config = composed("task=llm_adapters", "model=smollm2", "adapter=lora", *words)
    ids = torch.arange(4, 24)[None]
    plain = load_causal_lm(config.model, config.adapter, 0).model
    packed = load_causal_lm(model(*words, "model.quantization=int8"), config.adapter, 0).model
    assert count_parameters(packed) == count_parameters(plain)
    assert any(module.weight.dtype == torch.int8 for module in packed.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        expected, found = plain(ids).logits, packed(ids).logits
    assert 0 < float((found - expected).abs().max()) < 0.15 * float(expected.abs().max())
    packed.train()(ids, labels=ids).loss.backward()
    moved = [parameter.grad.abs().sum() for parameter in packed.parameters() if parameter.grad is not None]
    assert moved
    assert float(sum(moved)) > 0


def test_the_shape_of_a_packed_weight_is_that_of_the_layer() -> None:
    import torch

    weight = torch.zeros(8, 1, dtype=torch.uint8)
    assert shape_of(weight) == (8, 1)
    weight.quant_state = type("State", (), {"shape": torch.Size((4, 4))})()  # type: ignore[attr-defined]
    assert shape_of(weight) == (4, 4)
