"""The engine on every adapter of the group: what it clips equals a loop over single records in float64."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from naive import assert_agrees, clipped_sums
from support.tiny_causal import disturb, tiny
from test_engine_models import padded_batch
from torch import Tensor, nn
from torch.nn import functional as F

from privlm.adapters.adapter import apply_adapter
from privlm.config import AdapterConfig, defaults
from privlm.privacy.engine import PrivacyEngine

ARCHITECTURES = ("llama", "bloom", "gptj", "opt", "gpt2", "gpt_neox")
BOTTLENECKS = ("adapter_h", "adapter_p", "parallel", "scaled_parallel")
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"bottleneck_size": 4} for name in BOTTLENECKS},
    **{name: {"rank": 2, "alpha": 4.0, "dropout": 0.0} for name in ("lora", "lora_emnlp", "dora")},
    "ia3": {}, "prefix": {"num_virtual_tokens": 3}, "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip


def language_model(model: Any, batch: dict[str, Tensor]) -> Tensor:
    ids_BT = batch["input_ids"]
    logits_BTV = model(input_ids=ids_BT, attention_mask=batch["attention_mask"]).logits[:, -ids_BT.shape[1] :]
    loss_BT = F.cross_entropy(logits_BTV[:, :-1].mT, ids_BT[:, 1:], reduction="none")
    return (loss_BT * batch["attention_mask"][:, 1:]).sum(1)


def adapted(name: str, architecture: str = "llama", **changes: Any) -> nn.Module:
    config = defaults(AdapterConfig, "adapter", name, **{**SMALL[name], **changes})
    return disturb(apply_adapter(tiny(architecture), config, seed=0)).train()


@pytest.mark.parametrize(
    ("name", "architecture"),
    [*product(BOTTLENECKS, ARCHITECTURES), *product(sorted(SMALL.keys() - BOTTLENECKS), ("llama", "gpt2"))],
)
def test_clipped_sums_are_those_of_single_records(name: str, architecture: str) -> None:
    model = adapted(name, architecture)
    engine = assert_agrees(
        model, language_model, padded_batch(), padded_batch(), reference=copy.deepcopy(model).double()
    )
    by_rule = name not in ("dora", "ia3")  # whose vectors stand beside layers, not in one
    assert (engine.ways() == {}) == by_rule


@pytest.mark.parametrize("wiring", ["input", "output", "parallel"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_learned_scale_of_every_wiring(wiring: str, architecture: str) -> None:
    target = "mlp.down_proj" if architecture == "llama" else "mlp.c_proj"
    model = adapted("adapter_h", architecture, wirings={target: wiring}, scale="learned", init="mam")
    assert_agrees(model, language_model, padded_batch(), reference=copy.deepcopy(model).double())


def test_learned_scale_of_one_number_a_row() -> None:
    """A model whose records are rows of features, without positions."""
    base = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    config = defaults(AdapterConfig, "adapter", "scaled_parallel", bottleneck_size=2, target_modules=["0", "2"])
    model = disturb(apply_adapter(base, config, 0))
    batch = {"x": torch.randn(7, 6), "y": torch.randint(0, 3, (7,))}

    def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"].to(next(model.parameters()).dtype)), batch["y"], reduction="none")

    assert_agrees(model, losses, batch, reference=copy.deepcopy(model).double())


@pytest.mark.parametrize("architecture", ["gpt2", "bloom"])
def test_lora_of_fused_queries_and_values(architecture: str) -> None:
    model = adapted("lora", architecture, fused_qkv="qv")
    assert_agrees(model, language_model, padded_batch(), padded_batch(), reference=copy.deepcopy(model).double())


@pytest.mark.parametrize("name", ["adapter_h", "scaled_parallel", "dora", "ia3"])
def test_under_activation_checkpointing(name: str) -> None:
    model: Any = adapted(name)
    reference = copy.deepcopy(model).double()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_agrees(model, language_model, padded_batch(), padded_batch(), reference=reference)


@pytest.mark.parametrize("name", ["scaled_parallel", "dora", "ia3", "prefix", "prompt"])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_add_up(name: str, micro_batch_size: int) -> None:
    whole, pieces = (
        clipped_sums(PrivacyEngine(adapted(name), clipping_norm=1.0), language_model, padded_batch(), size)[1]
        for size in (7, micro_batch_size)
    )
    for total, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


def test_learned_scale_moves_under_privacy() -> None:
    model = adapted("scaled_parallel")
    _, sums = clipped_sums(PrivacyEngine(model, clipping_norm=1.0), language_model, padded_batch())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = [total for name, total in zip(trained, sums, strict=True) if "bottleneck_scale" in name]
    assert len(scales) == 6
    assert all(scale.shape == () and float(scale) != 0 for scale in scales)
