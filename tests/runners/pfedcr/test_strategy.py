"""pFedCR's rule: the server tunes the output layer alone, and of a client's own model the gates learn last."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from privlm.runners.pfedcr.ctc import CTC
from privlm.runners.pfedcr.line_data import LineData
from privlm.runners.pfedcr.partial_training import mixed
from privlm.runners.pfedcr.recogniser import Recogniser, is_attention
from privlm.runners.pfedcr.strategy import PFedCR
from support.federation import config_of
from support.lines import ALPHABET, striped_lines
from support.processes import forked_status
from torch import Tensor

from privlm.federated.federation import Federation
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.job import Stage
from privlm.models.loaded import Loaded

CLIENTS = {"a": 12, "b": 7}
"""Client -> lines."""

NOTHING: dict[str, float | None] = {"epochs": 0, "mix": 0.5, "attention_epochs": 0, "attention_learning_rate": None}
"""task.personalise of a run whose clients take the server's model."""


class Seen(PFedCR):
    """Keeps what the server averaged and tuned, and how many steps clients have taken for their own models."""

    def __init__(self, config: Any, virtual: Callable[[], LineData]) -> None:
        super().__init__(config, virtual)
        self.averaged: dict[str, Tensor] = {}
        self.tuned: dict[str, Tensor] = {}
        self.taken: list[tuple[int, int]] = []

    def aggregate(self, state: Any, updates: Iterable[Any], merge: Any) -> Any:
        def kept(updates: Iterable[Any]) -> Any:
            merged = merge(updates)
            self.averaged = {name: tensor.clone() for name, tensor in merged.items()}
            return merged

        self.tuned = super().aggregate(state, updates, kept)
        return self.tuned

    def personalise(self, local: Any) -> None:
        super().personalise(local)
        self.taken.append((local.steps_taken, self.steps_of_personalising(local.num_steps, local.num_rows)))


class Killed(PFedCR):
    """The second client dies while it makes its own model."""

    def personalise(self, local: Any) -> None:
        if local.client == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        super().personalise(local)


def build() -> Recogniser:
    torch.manual_seed(0)
    return Recogniser("crnn_small", 24, 7, norm="batch", attention="cbam")


def trained(
    own: Mapping[str, float | None], *, virtual_epochs: int = 1, kind: type[PFedCR] = Seen, folder: Path | None = None,
    seed: int = 0, num_rounds: int = 2,
) -> Federated:  # fmt: skip
    """own: of task.personalise."""
    config = config_of("fedavg", rounds=num_rounds, trainer_batch_size=4, trainer_micro_batch_size=4, trainer_steps=2)
    config.trainer.optimizer, config.trainer.learning_rates = "adamw", {"attention": 1e-2}
    config.seed, config.task = (
        seed,
        SimpleNamespace(
            server=SimpleNamespace(virtual_epochs=virtual_epochs, learning_rate=1e-2),
            personalise=SimpleNamespace(**{**NOTHING, **own}),
        ),
    )
    data = {name: LineData(striped_lines(number, seed=number, longest=2), ALPHABET) for name, number in CLIENTS.items()}
    strategy = kind(config, lambda: LineData(striped_lines(8, seed=99), ALPHABET))
    opened = Stage.in_memory(trainer=config.trainer) if folder is None else Stage.at(folder, trainer=config.trainer)
    with opened as stage:
        return rounds(stage, Federation(config, Loaded.of(build, made_of="recogniser"), CTC(), data, strategy))


def changed(after: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def models(found: Federated) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The server's tensors, and those of each client's own model."""
    own = []
    for client in CLIENTS:
        with found.model_of(client) as model:
            own.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return {name: tensor.clone() for name, tensor in found.federation.loaded.model.state_dict().items()}, own


def test_after_a_round_the_server_has_changed_the_output_layer_alone() -> None:
    strategy = trained({}).federation.strategy
    assert isinstance(strategy, Seen)
    assert changed(strategy.tuned, strategy.averaged) == {"out.weight", "out.bias"}
    assert (strategy.num_tuned, strategy.tuned.keys()) == (2, build().state_dict().keys())


def test_a_server_without_virtual_epochs_averages_as_fedavg_does() -> None:
    strategy = trained({}, virtual_epochs=0).federation.strategy
    assert isinstance(strategy, Seen)
    assert changed(strategy.tuned, strategy.averaged) == set()


def test_in_the_last_stage_of_a_client_gates_alone_change() -> None:
    server, own = models(trained({"attention_epochs": 1}))
    for model in own:
        assert changed(model, server)
        assert all(map(is_attention, changed(model, server)))


def test_gates_alone_may_have_a_rate_of_their_own_and_without_one_have_that_of_the_rounds() -> None:
    found = [
        models(trained({"attention_epochs": 1, "attention_learning_rate": rate}))[1] for rate in (None, 1e-2, 2e-2)
    ]
    for as_in_rounds, same, other in zip(*found, strict=True):
        assert changed(same, as_in_rounds) == set()
        assert changed(other, as_in_rounds)
        assert all(map(is_attention, changed(other, as_in_rounds)))


def test_the_own_model_is_the_average_of_the_local_epoch_and_what_was_received() -> None:
    server, alone = models(trained({"epochs": 1, "mix": 1.0}))
    _, half = models(trained({"epochs": 1, "mix": 0.5}))
    _, none = models(trained({"epochs": 1, "mix": 0.0}))
    for number in range(len(CLIENTS)):
        assert "out.weight" in changed(alone[number], server)
        assert all(name.endswith("num_batches_tracked") for name in changed(none[number], server))
        wanted = mixed(alone[number], server, 0.5)
        assert changed(half[number], wanted) == set()


def test_the_steps_of_the_own_model_are_counted_before_they_are_taken() -> None:
    strategy = trained({"epochs": 1, "attention_epochs": 1.5}).federation.strategy
    assert isinstance(strategy, Seen)
    assert strategy.taken == [(3 + 5, 3 + 5), (2 + 3, 2 + 3)]


def test_the_tuning_is_a_function_of_seed_and_round() -> None:
    found = [trained({}, seed=seed, num_rounds=1).outcome.digest for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_killed_while_own_models_are_made_or_in_a_round_the_rest_ends_equal(tmp_path: Path) -> None:
    own = {"epochs": 1, "attention_epochs": 1}
    whole = trained(own, kind=PFedCR)
    again = partial(trained, own, folder=tmp_path)
    assert forked_status(partial(again, kind=Killed)) == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "stages" / "train" / "clients").iterdir()] == ["a"]
    resumed = again(kind=PFedCR)
    assert resumed.outcome == whole.outcome
    for one, other in zip(models(resumed)[1], models(whole)[1], strict=True):
        assert changed(one, other) == set()
