"""A federation as a stage in a folder: several processes, kills and resumes, faults."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.federation import CLIENTS, config_of, federation, network
from support.processes import forked_status
from torch import nn

from privlm.errors import UsageError
from privlm.federated.engine import InProcess
from privlm.federated.federation import Federation
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.federated.server import TooFewReplies
from privlm.federated.worker import Worker
from privlm.job import Stage


def make(name: str, changes: dict[str, Any], build: Any = None) -> Federation:
    return federation(config_of(name, **changes), **({"build": build} if build else {}))


def trained(name: str = "fedavg", folder: Path | None = None, build: Any = None, **changes: Any) -> Federated:
    config = config_of(name, **changes)
    again = partial(make, name, changes, build)
    opened = Stage.in_memory(trainer=config.trainer) if folder is None else Stage.at(folder, trainer=config.trainer)
    with opened as stage:
        return rounds(stage, again(), make=again)


def test_several_processes_give_the_same_models_as_one(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"build": network, "rounds": 2, "personal_steps": 2}
    one = trained("fedavg_ft", **changes)
    several = trained("fedavg_ft", tmp_path, engine="pool", workers=2, **changes)
    assert one.outcome == several.outcome
    for client in CLIENTS:
        assert state(one, client) == state(several, client)


def test_own_parts_reach_other_processes_as_the_run_has_them(tmp_path: Path) -> None:
    found = []
    for engine in ("inprocess", "pool"):
        config = config_of("fedbn", rounds=2, engine=engine, workers=2)
        with Stage.at(tmp_path / engine, trainer=config.trainer) as stage:
            warm = federation(config, build=network)
            warm.loaded.model.norm.weight.data.fill_(2.0)
            found.append(rounds(stage, warm, make=partial(make, "fedbn", {"rounds": 2}, network)))
    one, several = found
    assert one.outcome == several.outcome
    for client in CLIENTS:
        assert state(one, client) == state(several, client)


def state(found: Federated, client: str) -> dict[str, list[float]]:
    with found.model_of(client) as model:
        return {name: value.flatten().tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "changes"), [("scaffold", {}), ("fedadam", {}), ("ditto", {"optimizer_state": "keep"})]
)
def test_killed_in_any_round_the_rest_gives_the_same_model(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    whole = trained(name, tmp_path / "whole", **changes)
    killed = partial(trained, name, tmp_path / "killed", **changes)
    for number in (1, 3):
        assert forked_status(partial(killed, fault={"kill_at_round": number})) == -signal.SIGKILL
    found = killed()
    assert found.outcome == whole.outcome
    for client in CLIENTS:
        assert state(found, client) == state(whole, client)
    again = killed()  # a stage that is done loads
    assert again.outcome == whole.outcome
    assert state(again, CLIENTS[0]) == state(whole, CLIENTS[0])


# --- faults -----------------------------------------------------------------------------------------------------------


def test_clients_that_are_not_reached_or_late_are_left_out_and_come_back() -> None:
    found = trained(rounds=8, fault={"drop_rate": 0.3, "straggler_rate": 0.2}, on_too_few="skip")
    assert found.outcome.rounds == 8
    assert 0 < found.outcome.failures < 32
    assert found.outcome.replies + found.outcome.failures == 32


def test_a_client_that_sends_no_numbers_never_enters_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    found = trained(fault={"nan_client": "c2"})
    assert (found.outcome.replies, found.outcome.failures) == (12, 4)
    assert all(value.isfinite().all() for value in found.federation.loaded.model.state_dict().values())
    assert "client c2 is left out: weight" in caplog.text


def test_a_round_of_too_few_is_refused_tried_again_or_stepped_over(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"min_clients": 3, "fault": {"drop_rate": 0.6}, "rounds": 3}
    with pytest.raises(TooFewReplies, match=r"round \d: [012] of the 3 replies .*not reached"):
        trained("fedavg", tmp_path, on_too_few="fail", **changes)
    skipped = trained(on_too_few="skip", **changes)
    assert skipped.outcome.rounds == 3
    again = trained(on_too_few="retry", **(changes | {"fault": {"drop_rate": 0.3}}))
    assert again.outcome.rounds == 3


def test_a_process_that_dies_or_hangs_is_one_client_less(caplog: pytest.LogCaptureFixture) -> None:
    changes: dict[str, Any] = {"rounds": 1, "timeout_s": 6.0, "engine": "pool", "workers": 2}
    config = config_of(**changes)
    with Stage.in_memory(trainer=config.trainer) as stage:
        found = rounds(stage, make("fedavg", changes), make=partial(fragile, changes))
    assert (found.outcome.replies, found.outcome.failures) == (2, 2)
    assert "client c1 is left out: its process died (status -9)" in caplog.text
    assert "client c2 is left out: no reply within federated.timeout_s=6" in caplog.text


class Fragile:
    """Rows whose reading kills or blocks the process."""

    lengths = None

    def __init__(self, rows: Any, does: str) -> None:
        self.rows = rows
        self.does = does

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Any:
        if self.does == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


def fragile(changes: dict[str, Any]) -> Federation:
    clients = make("fedavg", changes)
    data = dict(clients.data)
    data["c1"], data["c2"] = Fragile(data["c1"], "dies"), Fragile(data["c2"], "hangs")
    return Federation(clients.config, clients.loaded, clients.objective, data)


class Replays(InProcess):
    """Sends every reply of round 1 again in round 2, and one twice."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        self.first: list[Any] = []

    def run_round(self, tasks: Any) -> Any:
        replies = list(super().run_round(tasks))
        if self.first:
            yield self.first[0]
            yield from replies[1:]
            yield replies[1]
        else:
            self.first = replies
            yield from replies


def test_replayed_and_doubled_replies_are_left_out_by_name(caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(rounds=2)
    with Stage.in_memory(trainer=config.trainer) as stage:
        found = rounds(stage, federation(config), engine=Replays)
    assert "client c0 is left out: a reply of client c0 for round 1, not 2" in caplog.text
    assert "client c1 is left out: this client has replied already" in caplog.text
    assert (found.outcome.replies, found.outcome.failures) == (4 + 3, 2)


def broad() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 1))


@pytest.mark.parametrize(("kind", "error"), [("fp16", 1e-3), ("int8", 2e-2)])
def test_a_narrow_wire_costs_fewer_bytes_and_little_accuracy(kind: str, error: float) -> None:
    wide, narrow = (trained(rounds=2, build=broad, **changes) for changes in ({}, {"wire": kind}))
    assert narrow.outcome.bytes_up < wide.outcome.bytes_up
    for name, value in wide.federation.loaded.model.state_dict().items():
        if value.is_floating_point():
            near = narrow.federation.loaded.model.state_dict()[name]
            assert float((near - value).norm()) < error * max(1.0, float(value.norm()))


def test_rates_and_optimizers_over_rounds_change_the_model() -> None:
    changes = {"schedule": ["constant", "cosine"], "optimizer_state": ["reset", "keep", "average"]}
    digests = {
        (name, value): trained(rounds=3, trainer_optimizer="adamw", **{name: value}).outcome.digest
        for name, values in changes.items()
        for value in values
    }
    assert digests["schedule", "constant"] == digests["optimizer_state", "reset"]
    assert len(set(digests.values())) == 4


def test_a_federation_without_clients_or_rows_is_refused() -> None:
    config = config_of()
    with pytest.raises(UsageError, match="the federation has no clients"):
        federation(config, clients=())


def test_a_damaged_state_of_a_client_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    assert forked_status(partial(trained, "scaffold", tmp_path, fault={"kill_at_round": 3})) == -signal.SIGKILL
    (state_file,) = sorted(tmp_path.glob("stages/train/clients/c1/round-2.safetensors"))
    content = bytearray(state_file.read_bytes())
    content[-1] ^= 1
    state_file.write_bytes(content)
    with pytest.raises(UsageError, match=r"c1/round-2\.safetensors is damaged"):
        trained("scaffold", tmp_path)
