"""Predicting the next token on Llama and GPT-2: no row feels its neighbours, its padding, or the engine."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from privacy.naive import clipped_sums, naive
from torch import Tensor, nn

from privlm.adapters.adapter import apply_adapter
from privlm.config import AdapterConfig, PrivacyConfig, TrainerConfig, defaults
from privlm.data.causal_lm import CausalSplit, TokenRow, causal_split
from privlm.models.causal import random_causal_lm
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.training.next_token import NextToken
from privlm.training.objective import ExampleRandom
from privlm.training.trainer import Private, Trainer

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
FAMILIES = tuple(SHAPES)


def model_of(family: str) -> nn.Module:
    return random_causal_lm(SHAPES[family], seed=1)


@cache
def rows(weighted: bool = False) -> tuple[TokenRow, ...]:
    """16 rows of 5 to 30 tokens, half of each a prompt."""
    random = np.random.default_rng(0)
    made = []
    for length in random.permutation(np.linspace(5, 30, 16).astype(int)):
        weights = random.uniform(0.1, 3, length).tolist() if weighted else None
        made.append(TokenRow(random.integers(5, 900, length).tolist(), int(length) // 2, weights=weights))
    return tuple(made)


def split_of(side: str = "right", weighted: bool = False) -> CausalSplit:
    return causal_split(rows(weighted), max_length=64, pad_token_id=0, side=side)


def losses_of(model: nn.Module, data: CausalSplit, micro_batch_size: int) -> Tensor:
    pieces = np.split(np.arange(len(data)), range(micro_batch_size, len(data), micro_batch_size))
    return torch.cat([_losses(model, data.batch(piece)) for piece in pieces])


def _losses(model: nn.Module, batch: Any) -> Tensor:
    return NextToken().losses(model, batch, ExampleRandom(0, 1, np.arange(len(batch["labels"])))).loss


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_mean_over_the_response_tokens(family: str, weighted: bool) -> None:
    model, data = model_of(family), split_of(weighted=weighted)
    expected = []
    with torch.no_grad():
        for row in rows(weighted):
            log_p = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            positions = range(row.prompt_length, len(row.ids))
            terms = torch.stack([-log_p[t - 1, row.ids[t]] for t in positions])
            weights = torch.tensor([row.weights[t] if row.weights else 1.0 for t in positions])
            expected.append((weights * terms).sum() / weights.sum())
        found = losses_of(model, data, micro_batch_size=4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_and_padding_change_no_loss(family: str, side: str) -> None:
    model, data = model_of(family), split_of(side)
    with torch.no_grad():
        alone = losses_of(model, split_of("right"), 1)
        for size in (2, 8):
            torch.testing.assert_close(losses_of(model, data, size), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_no_gradient(family: str, side: str) -> None:
    model = model_of(family)
    parameters = list(model.parameters())
    alone = torch.autograd.grad(losses_of(model, split_of("right"), 1).sum(), parameters)
    padded = torch.autograd.grad(losses_of(model, split_of(side), 8).sum(), parameters)
    for mine, reference in zip(padded, alone, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_what_is_predicted_alone_give_the_same(family: str, side: str, adapter: str) -> None:
    model = apply_adapter(model_of(family), defaults(AdapterConfig, "adapter", adapter), seed=0)
    if adapter == "prompt" and side == "left":
        return  # refused, whatever is computed
    batch = split_of(side, weighted=True).batch(np.arange(16))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for objective in (NextToken(), NextToken(only_predicted=True)):
        losses = objective.losses(model, batch, ExampleRandom(0, 1, np.arange(16))).loss
        found.append([losses.detach(), *torch.autograd.grad(losses.sum(), parameters)])
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_clipped_sums_of_the_engine_are_those_of_a_loop(family: str, side: str, adapter: str) -> None:
    model = apply_adapter(model_of(family), defaults(AdapterConfig, "adapter", adapter), seed=0).train()
    batch = split_of(side, weighted=True).batch(np.arange(16))
    norms, _ = naive(model, _losses, batch, 1.0)
    bound = float(norms.median())
    norms, expected = naive(model, _losses, batch, bound)
    engine = PrivacyEngine(model, clipping_norm=bound)
    statistics, sums = clipped_sums(engine, _losses, batch, micro_batch_size=8)
    found = torch.cat([part.norms for part in statistics]).double()
    torch.testing.assert_close(found, norms, rtol=1e-4, atol=0)
    scale = max(float(total.abs().max()) for total in expected)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-4, atol=1e-4 * scale)


@cache
def plan() -> PrivacyPlan:
    privacy = {"epsilon": None, "noise_multiplier": 1.0, "delta": 1e-3, "rng": "reproducible"}
    config = defaults(PrivacyConfig, "privacy", "dp_sgd", **privacy)
    return make_plan(config, dataset_size=16, batch_size=8, steps=3)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_takes_the_same_steps_in_any_micro_batch(family: str, private: bool) -> None:
    trained = []
    for size in (2, 8):
        model = model_of(family)
        settings = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 8, "micro_batch_size": size}
        config = defaults(TrainerConfig, "trainer", "single", **settings)
        mechanism = Private(plan(), Ledger()) if private else None
        Trainer(model, NextToken(), split_of("left"), config, private=mechanism).run(steps=3)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    untrained = torch.cat([parameter.detach().flatten() for parameter in model_of(family).parameters()])
    assert (trained[0] - untrained).norm() > 0.1
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-4, atol=1e-5)


def test_without_positions_left_padding_would_shift_gpt2() -> None:
    """What the collator is for."""
    model, data = model_of("gpt2"), split_of("left")
    batch = data.batch(np.arange(8))
    shifted = batch | {"position_ids": torch.arange(batch["labels"].shape[1]).expand_as(batch["labels"])}
    with torch.no_grad():
        assert (_losses(model, shifted) - _losses(model, batch)).abs().max() > 1e-2


def test_model_that_knows_no_positions_gets_none() -> None:
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}
    model, data = random_causal_lm(bloom), split_of("left")
    with torch.no_grad():
        torch.testing.assert_close(losses_of(model, data, 8), losses_of(model, data, 1), rtol=1e-4, atol=1e-5)


def test_half_precision_losses_are_float32() -> None:
    model, data = model_of("llama").to(torch.bfloat16), split_of()
    losses = losses_of(model, data, 4)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()


def test_any_module_that_gives_logits_is_a_language_model() -> None:
    class Bigram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 1000)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    data = replace(split_of(), pad_token_id=999)
    with torch.no_grad():
        model = Bigram()
        torch.testing.assert_close(losses_of(model, data, 8), losses_of(model, data, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_first_token_is_not_predicted_from_the_padding_before_it(family: str) -> None:
    """Also where the data labels every token: a collator of one's own may."""
    model, ids = model_of(family), torch.randint(5, 900, (3, 9), generator=torch.Generator().manual_seed(0))
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def losses(batch: dict[str, Tensor]) -> Tensor:
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        return _losses(model, batch | {"position_ids": positions})

    values = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    padded = {name: nn.functional.pad(alone[name], (4, 0), value=value) for name, value in values.items()}
    torch.testing.assert_close(losses(padded), losses(alone), atol=1e-5, rtol=1e-5)
