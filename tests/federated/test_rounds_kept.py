"""A federation as a stage in a folder: several processes, kills and resumes, faults."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.federation import CLIENTS, config_of, federation, network
from support.processes import forked_status

from privlm.federated.federation import Federation
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.job import Stage


def make(name: str, changes: dict[str, Any], build: Any = None) -> Federation:
    return federation(config_of(name, **changes), **({"build": build} if build else {}))


def trained(name: str = "fedavg", folder: Path | None = None, build: Any = None, **changes: Any) -> Federated:
    config = config_of(name, **changes)
    again = partial(make, name, changes, build)
    opened = Stage.in_memory(trainer=config.trainer) if folder is None else Stage.at(folder, trainer=config.trainer)
    with opened as stage:
        return rounds(stage, again(), make=again)


def test_several_processes_give_the_same_model_as_one() -> None:
    one, several = trained(), trained(engine="pool", workers=2)
    assert one.outcome == several.outcome
    assert len(one.outcome.digest) == 64


def test_personal_models_are_the_same_by_several_processes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"build": network, "rounds": 2, "personal_steps": 2}
    one = trained("fedavg_ft", **changes)
    several = trained("fedavg_ft", tmp_path, engine="pool", workers=2, **changes)
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
