"""What the server tunes and what clients personalise: the rest keeps its bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from privlm.runners.pfedcr.line_data import LineData
from privlm.runners.pfedcr.partial_training import mix_with, mixed, only, train_attention, tune_output
from privlm.runners.pfedcr.recogniser import Recogniser, is_attention, is_output
from support.lines import ALPHABET, striped_lines
from support.regression import settings
from torch import Tensor

SERVER: Any = SimpleNamespace(learning_rate=1e-2, virtual_epochs=1)


@pytest.fixture
def model() -> Recogniser:
    torch.manual_seed(0)
    model = Recogniser("crnn_small", 24, 7, norm="batch", attention="cbam")
    model(torch.randn(4, 1, 24, 40))  # statistics that are not those of the start
    return model


@pytest.fixture
def lines() -> LineData:
    return LineData(striped_lines(16), ALPHABET)


def trainer(**changes: Any) -> Any:
    return settings(
        **(
            {"optimizer": "adamw", "batch_size": 8, "micro_batch_size": 8, "learning_rates": {"attention": 1e-2}}
            | changes
        )
    )


def copied(model: Recogniser) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed_names(model: Recogniser, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("is_training", [True, False])
def test_the_servers_step_changes_the_output_layer_and_nothing_else(
    model: Recogniser, lines: LineData, is_training: bool
) -> None:
    model.train(is_training)
    before = copied(model)
    tune_output(model, lines, trainer(), SERVER, seed=0)
    assert changed_names(model, before) == {"out.weight", "out.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training is is_training for module in model.modules())


def test_the_servers_step_is_a_function_of_its_seed(model: Recogniser, lines: LineData) -> None:
    start, found = copied(model), []
    for seed in (0, 0, 1):
        model.load_state_dict(start)
        tune_output(model, lines, trainer(), SERVER, seed=seed)
        found.append(copied(model)["out.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_server_without_epochs_changes_nothing(model: Recogniser, lines: LineData) -> None:
    before = copied(model)
    tune_output(model, lines, trainer(), SimpleNamespace(learning_rate=1e-2, virtual_epochs=0), seed=0)
    assert changed_names(model, before) == set()


@pytest.mark.parametrize("rates", [{}, {"attention": 1e-2}, {"out": 1.0}])
def test_the_last_stage_of_a_client_changes_gates_alone(
    model: Recogniser, lines: LineData, rates: dict[str, float]
) -> None:
    before = copied(model)
    train_attention(model.train(), lines, trainer(learning_rates=rates), epochs=2, seed=0)
    changed = changed_names(model, before)
    assert changed
    assert all(map(is_attention, changed))


def test_what_was_frozen_before_stays_frozen(model: Recogniser) -> None:
    model.out.bias.requires_grad_(False)
    with only(model, is_output):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["out.weight"]
    assert not model.out.bias.requires_grad
    assert model.out.weight.requires_grad


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_the_average_is_of_parameters_and_statistics_and_counts_stay_own(model: Recogniser, mix: float) -> None:
    received = {name: torch.full_like(tensor, 3) for name, tensor in model.state_dict().items()}
    before = copied(model)
    mix_with(model, received, mix)
    after = model.state_dict()
    name = "blocks.0.norm.running_mean"
    torch.testing.assert_close(after[name], mix * before[name] + (1 - mix) * 3)
    torch.testing.assert_close(after["out.weight"], mix * before["out.weight"] + (1 - mix) * 3)
    assert torch.equal(after["blocks.0.norm.num_batches_tracked"], before["blocks.0.norm.num_batches_tracked"])


def test_an_average_with_itself_is_the_same_to_the_bit(model: Recogniser) -> None:
    state = copied(model)
    found = mixed(state, state, 0.5)
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in state.items())


def test_only_what_the_server_sent_is_averaged(model: Recogniser) -> None:
    before = copied(model)
    mix_with(model, {"out.bias": torch.zeros(7)}, 0.5)
    assert changed_names(model, before) == {"out.bias"}
