"""Privacy of federated rounds: by record within the clients, by client at the server, and sums under masks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.federation import CLIENTS, SIZES, config_of, federation, network

from privlm.config import PrivacyConfig, defaults
from privlm.errors import UsageError
from privlm.federated import averaging
from privlm.federated.averaging import ByClient
from privlm.federated.federation import Federation
from privlm.federated.messages import Update
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.federated.secured import Secured, masked
from privlm.job import Stage
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import ReproducibleNoise
from privlm.privacy.plan import make_plan
from privlm.privacy.run_account import client_ledger, read_account


def by_record(**changes: Any) -> PrivacyConfig:
    base = {"epsilon": None, "noise_multiplier": 1.0, "delta": 1e-3, "rng": "reproducible"}
    return defaults(PrivacyConfig, "privacy", "dp_sgd", **(base | changes))


def by_client(**changes: Any) -> PrivacyConfig:
    base = {"epsilon": None, "noise_multiplier": 1.0, "delta": 1e-3, "rng": "reproducible", "clipping_norm": 0.5}
    return defaults(PrivacyConfig, "privacy", "dp_fedavg", **(base | changes))


def trained(config: Any, folder: Path | None = None, clients: Federation | None = None) -> Federated:
    opened = (
        Stage.in_memory(trainer=config.trainer, privacy=config.privacy)
        if folder is None
        else Stage.at(folder, trainer=config.trainer, privacy=config.privacy)
    )
    with opened as stage:
        return rounds(stage, clients or federation(config))


# --- by record --------------------------------------------------------------------------------------------------------


def test_each_client_pays_for_its_own_records_and_the_run_for_the_one_that_pays_most(tmp_path: Path) -> None:
    config = config_of(privacy=by_record(), trainer_batch_size=4)
    trained(config, tmp_path)
    spent = {client: Ledger(client_ledger(tmp_path, client)).epsilon(1e-3, accountant="rdp") for client in CLIENTS}
    assert {len(Ledger(client_ledger(tmp_path, client)).releases) for client in CLIENTS} == {4 * 3}
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert 0 < privacy["epsilon"] <= max(price.epsilon for price in spent.values())
    assert privacy["unit"] == "record"
    assert privacy["guarantee"]
    smallest = min(zip(SIZES, CLIENTS, strict=True))[1]  # of few records each is drawn more often
    pld = {client: Ledger(client_ledger(tmp_path, client)).epsilon(1e-3).epsilon for client in CLIENTS}
    assert max(pld, key=pld.__getitem__) == smallest
    assert privacy["epsilon"] == pytest.approx(pld[smallest])
    assert read_account(tmp_path) is not None


def test_clients_that_share_a_record_are_composed(tmp_path: Path) -> None:
    config = config_of(privacy=by_record(), trainer_batch_size=4, rounds=2)
    apart = trained_price(config, federation(config), tmp_path / "apart")
    shared = federation(config)
    shared.data["c0"].x[0], shared.data["c0"].y[0] = shared.data["c3"].x[0], shared.data["c3"].y[0]
    assert trained_price(config, shared, tmp_path / "shared") > 1.2 * apart


def trained_price(config: Any, clients: Federation, folder: Path) -> float:
    trained(config, folder, clients)
    return json.loads((folder / "privacy.json").read_text())["epsilon"]


def test_private_clients_by_several_processes_release_the_same(tmp_path: Path) -> None:
    outcomes = []
    for engine in ("inprocess", "pool"):
        config = config_of(privacy=by_record(), trainer_batch_size=4, rounds=2, engine=engine, workers=2)
        with Stage.at(tmp_path / engine, trainer=config.trainer, privacy=config.privacy) as stage:
            outcomes.append(rounds(stage, make(), make=make).outcome)
    assert outcomes[0] == outcomes[1]
    lines = [client_ledger(tmp_path / engine, "c1").read_bytes() for engine in ("inprocess", "pool")]
    assert lines[0] == lines[1]


def make() -> Federation:
    return federation(config_of(privacy=by_record(), trainer_batch_size=4, rounds=2))


def test_no_row_of_a_client_is_told_under_privacy(tmp_path: Path) -> None:
    trained(config_of(privacy=by_record(), trainer_batch_size=4, rounds=2), tmp_path)
    names = {json.loads(line)["name"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()}
    assert "bytes_up" in names
    assert not names & {"loss", "delta_norm", "gradient_norm"}


# --- by client --------------------------------------------------------------------------------------------------------


def plan_of(noise: float = 1.0, clipping_norm: float = 0.5) -> Any:
    privacy = by_client(noise_multiplier=noise, clipping_norm=clipping_norm)
    return make_plan(privacy, dataset_size=8, batch_size=4.0, steps=10, compare=False)


def updates(state: dict[str, torch.Tensor], lengths: list[float]) -> list[Update]:
    rng = np.random.default_rng(0)
    found = []
    for number, length in enumerate(lengths):
        delta = torch.from_numpy(rng.normal(size=(3,)).astype(np.float32))
        moved = state["w"] + delta * (length / float(delta.norm()))
        found.append(Update(f"c{number}", {"w": moved}, 1.0, 10, 3))
    return found


def test_the_release_is_the_clipped_sum_over_the_expected_number_of_clients() -> None:
    state, plan = {"w": torch.tensor([1.0, 2.0, 3.0])}, plan_of()
    sent = updates(state, [0.1, 3.0, 0.4])
    found = mechanism(plan)(state, sent)["w"] - state["w"]
    noise = mechanism(plan)(state, [])["w"] - state["w"]
    want = sum(
        (update.tensors["w"] - state["w"]) * min(1.0, 0.5 / float((update.tensors["w"] - state["w"]).norm()))
        for update in sent
    )
    torch.testing.assert_close(found - noise, want / 4, rtol=1e-4, atol=1e-5)
    assert float(noise.norm()) > 0


def test_one_client_changes_the_sum_by_the_clipping_norm_at_most() -> None:
    state, plan = {"w": torch.tensor([1.0, 2.0, 3.0])}, plan_of()
    sent = updates(state, [0.1, 3e4, 0.5])
    whole = mechanism(plan)(state, sent)["w"].double()
    for left_out in range(3):
        others = mechanism(plan)(state, sent[:left_out] + sent[left_out + 1 :])["w"].double()
        assert float((whole - others).norm()) * 4 <= 0.5 * (1 + 1e-5)


def mechanism(plan: Any) -> ByClient:
    return ByClient(plan, ReproducibleNoise(7), Ledger(None), ("w",), round=1)


def test_a_run_by_client_tells_an_epsilon_whose_unit_is_the_client(tmp_path: Path) -> None:
    changes = {"sampling": "poisson", "fraction": 0.5, "weights": "uniform", "on_too_few": "skip"}
    config = config_of(privacy=by_client(delta=1e-2), **changes)
    found = trained(config, tmp_path)
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert (privacy["unit"], privacy["steps"], privacy["guarantee"]) == ("client", 4, True)
    ledger = Ledger(tmp_path / "privacy_ledger.jsonl")
    assert privacy["epsilon"] == pytest.approx(ledger.epsilon(1e-2).epsilon)
    assert privacy["epsilon"] <= ledger.epsilon(1e-2, accountant="rdp").epsilon
    assert ledger.releases[0].setting.expected_batch_size == 2.0
    assert (found.outcome.rounds, found.outcome.replies) == (4, None)
    kept = json.loads((tmp_path / "stages" / "train" / "model" / "training.json").read_text())
    assert kept["outcome"]["replies"] is None  # who was drawn is the secret of the sampling


def test_rounds_stop_before_the_budget_is_passed() -> None:
    config = config_of(privacy=by_client(noise_multiplier=None, epsilon=8.0, delta=1e-2), weights="uniform", rounds=6)
    config.federated.on_too_few = "skip"
    whole = trained(config)
    assert (whole.outcome.status, whole.outcome.rounds) == ("done", 6)


def test_running_statistics_are_refused_under_privacy_by_client() -> None:
    config = config_of(privacy=by_client(), weights="uniform")
    with pytest.raises(UsageError, match=r"norm\.running_mean is a running statistic"):
        trained(config, clients=federation(config, build=network))


# --- sums under masks -------------------------------------------------------------------------------------------------


def test_a_secure_round_is_the_plain_one_to_the_quantiser() -> None:
    plain = trained(config_of(rounds=2))
    secure = trained(config_of(rounds=2, secure_aggregation=True))
    for name, value in plain.federation.loaded.model.state_dict().items():
        torch.testing.assert_close(secure.federation.loaded.model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert secure.outcome.digest != plain.outcome.digest


def test_the_sum_survives_a_client_that_is_lost_after_all_have_masked() -> None:
    secured = Secured(("a", "b", "c"), threshold=2, clip=10.0, seed=3, largest=20.0)
    deltas = {name: {"w": torch.tensor([number + 0.25, -1.0])} for number, name in enumerate(("a", "b", "c"))}
    weights = {"a": 20.0, "b": 5.0, "c": 10.0}
    sent = {name: masked(secured.for_client(weights[name]), name, delta) for name, delta in deltas.items()}
    stayed = [Update(name, sent[name], weights[name], 1, 1) for name in ("a", "c")]
    found = secured.mean(stayed)["w"]
    want = (20 * deltas["a"]["w"] + 10 * deltas["c"]["w"]) / 30
    step = 10.0 / (2**31 // 3)
    assert float((found - want).abs().max()) <= 2 * step * 30 / 20 + 1e-6
    assert not torch.allclose(sent["a"]["w"].float(), deltas["a"]["w"])


def test_a_client_that_is_not_finite_is_left_out_where_nobody_could_see_it() -> None:
    config = config_of(rounds=1, secure_aggregation=True)
    clients = federation(config)
    clients.data["c1"].y[:] = math.inf
    found = trained(config, clients=clients)
    assert (found.outcome.replies, found.outcome.failures) == (3, 1)
    assert all(value.isfinite().all() for value in found.federation.loaded.model.state_dict().values())


def test_averaging_of_one_is_the_identity() -> None:
    state = {"w": torch.randn(5)}
    moved = {"w": torch.randn(5)}
    assert torch.equal(averaging.weighted(state, [Update("a", moved, 3.0, 3, 1)])["w"], moved["w"])
