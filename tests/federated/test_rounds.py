"""The rounds of a federation, as a library without a job directory and as a stage of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.federation import CLIENTS, SIZES, Share, config_of, federation, network
from support.regression import linear

from privlm.errors import UsageError
from privlm.federated import wire
from privlm.federated.engine import InProcess
from privlm.federated.federation import Federation
from privlm.federated.messages import Reply
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.federated.strategies import FedBN
from privlm.federated.strategy import Strategy
from privlm.federated.worker import Worker
from privlm.job import Stage
from privlm.privacy import keyed_random
from privlm.training.batches import ShuffledBatches


def trained(config: Any, **options: Any) -> Federated:
    with Stage.in_memory(trainer=config.trainer, privacy=config.privacy) as stage:
        return rounds(stage, federation(config, **options))


def seeds(round_: int, client: str, stage_seed: int) -> int:
    local = keyed_random.key_bits("client", stage_seed, round_, client) >> 65
    return keyed_random.key_bits("local training", local, "train") >> 65


def by_hand(config: Any, stage_seed: int) -> np.ndarray:
    """FedAvg of a linear regression in numpy: weights and bias, float64 [4]."""
    model = linear()
    w = torch.cat([model.weight.detach().flatten(), model.bias.detach()]).double().numpy()
    for round_ in range(1, config.federated.rounds + 1):
        moved = []
        for number, client in enumerate(CLIENTS):
            v, share = w.copy(), Share(number)
            batches = ShuffledBatches(len(share), 5, seeds(round_, client, stage_seed))
            for step in range(1, 4):
                indices = batches.indices(step)
                x = np.column_stack([share.x[indices].double().numpy(), np.ones(5)])
                v -= 0.02 * 2 * x.T @ (x @ v - share.y[indices].double().numpy()) / 5
            moved.append(v)
        w = np.average(moved, axis=0, weights=SIZES)
    return w


def weights(found: Federated) -> np.ndarray:
    model = found.federation.loaded.model
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()


def test_rounds_of_fedavg_are_those_by_hand() -> None:
    config, before = config_of(), torch.get_rng_state()
    with Stage.in_memory(trainer=config.trainer) as stage:
        found = rounds(stage, federation(config))
        assert torch.equal(torch.get_rng_state(), before)
        np.testing.assert_allclose(weights(found), by_hand(config, stage.seed()), rtol=1e-5)
    assert (found.outcome.rounds, found.outcome.replies, found.outcome.steps) == (4, 16, 48)


# --- strategies -------------------------------------------------------------------------------------------------------


def test_fedprox_without_strength_is_fedavg_and_with_it_stays_nearer() -> None:
    start = torch.cat([value.detach().flatten() for value in linear().parameters()]).numpy()
    plain = weights(trained(config_of("fedavg", rounds=1)))
    assert np.array_equal(plain, weights(trained(config_of("fedprox", rounds=1, proximal=0.0))))
    near = weights(trained(config_of("fedprox", rounds=1, proximal=20.0)))
    assert np.linalg.norm(near - start) < 0.8 * np.linalg.norm(plain - start)


def test_scaffold_moves_by_controls_as_by_hand() -> None:
    """One step a round with all rows: c_k is the gradient at g, c their mean, so round 2 steps along c for all."""
    config = config_of("scaffold", rounds=2, trainer_steps=1, trainer_batch_size=20, weights="uniform")
    with Stage.in_memory(trainer=config.trainer) as stage:
        found = weights(rounds(stage, federation(config)))
        seed = stage.seed()
    model = linear()
    w = torch.cat([model.weight.detach().flatten(), model.bias.detach()]).double().numpy()
    controls, c = [np.zeros(4)] * 4, np.zeros(4)
    for round_ in (1, 2):
        moved = []
        for number, client in enumerate(CLIENTS):
            share = Share(number)
            indices = ShuffledBatches(len(share), 20, seeds(round_, client, seed)).indices(1)
            x = np.column_stack([share.x[indices].double().numpy(), np.ones(20)])
            gradient = 2 * x.T @ (x @ w - share.y[indices].double().numpy()) / 20
            moved.append(w - 0.02 * (gradient + c - controls[number]))
        new = [old - c + (w - v) / 0.02 for old, v in zip(controls, moved, strict=True)]
        c = c + np.mean([after - before for after, before in zip(new, controls, strict=True)], axis=0)
        controls, w = new, np.mean(moved, axis=0)
    np.testing.assert_allclose(found, w, rtol=1e-4)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_optimizers_follow_their_rule(name: str) -> None:
    """A worked example: the mean update d of two rounds, put through the published formulas."""
    config = config_of(name)
    rule = federation(config).strategy
    g, ds = torch.tensor([[1.0, 2.0, 3.0]]), [torch.tensor([[0.5, -1.0, 0.0]]), torch.tensor([[0.25, 0.0, 2.0]])]
    state = {"weight": g}
    m, v = torch.zeros(1, 3).double(), torch.full((1, 3), 1e-6).double()
    want = g.double()
    for d in ds:
        state = rule.aggregate(state, [], lambda updates, d=d, state=state: {"weight": state["weight"] + d})
        if name == "fedavgm":
            m = 0.9 * m + d
            want = want + m
            continue
        m = 0.9 * m + 0.1 * d.double()
        square = d.double() ** 2
        v = {
            "fedadagrad": v + square,
            "fedadam": 0.99 * v + 0.01 * square,
            "fedyogi": v - 0.01 * square * torch.sign(v - square),
        }[name]
        want = want + 1e-3 * m / (v.sqrt() + 1e-3)
    torch.testing.assert_close(state["weight"].double(), want, rtol=1e-6, atol=1e-7)


def test_pfedme_moves_a_share_of_the_way_to_own_models_that_take_the_steps() -> None:
    """One step from w, where the distance has no slope: theta is that of plain training, and w goes half of its way."""
    step, one = {"rounds": 1, "trainer_steps": 1, "trainer_batch_size": 20}, CLIENTS[:1]
    found = trained(config_of("pfedme", **step, proximal=10.0, outer_learning_rate=0.05, personal_steps=3), clients=one)
    half = trained(config_of("fedavg", **step, trainer_learning_rate=0.01), clients=one)
    np.testing.assert_allclose(weights(found), weights(half), rtol=1e-5)
    whole = trained(config_of("fedavg", **step), clients=one)
    with found.model_of(CLIENTS[0]):
        np.testing.assert_allclose(weights(found), weights(whole), rtol=1e-6)


def test_pfedme_divides_a_round_into_turns_each_from_where_the_last_has_ended() -> None:
    changes = {"rounds": 1, "proximal": 1e-6, "outer_learning_rate": 1e6, "personal_steps": 2}
    found = trained(config_of("pfedme", **changes), clients=CLIENTS[:1])
    assert found.outcome.steps == 3
    with found.model_of(CLIENTS[0]):
        own = weights(found)
    assert np.array_equal(own, weights(found))  # w has gone all the way after the last turn, too
    shorter = trained(config_of("pfedme", **changes, trainer_steps=2), clients=CLIENTS[:1])
    assert not np.array_equal(own, weights(shorter))


@pytest.mark.parametrize(("name", "kept"), [("fedbn", "norm"), ("fedrep", "head")])
def test_personal_parts_never_travel_and_differ_between_clients(name: str, kept: str) -> None:
    config = config_of(name, rounds=2, **({"head": ["head"]} if name == "fedrep" else {}))
    seen: set[str] = set()
    with Stage.in_memory(trainer=config.trainer) as stage:
        clients = federation(config, build=network)
        found = rounds(stage, clients, engine=lambda worker: Spy(worker, seen))
    assert "body.weight" in seen
    assert not any(name.startswith(kept) for name in seen)
    own = []
    for client in CLIENTS:
        with found.model_of(client) as model:
            own.append(model.state_dict()[f"{kept}.weight"].clone())
    assert len({tuple(tensor.flatten().tolist()) for tensor in own}) == len(CLIENTS)


class Beginnings(FedBN):
    """Keeps what each client's own parts were before its first training."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.seen: dict[str, list[float]] = {}

    def train(self, local: Any) -> None:
        self.seen[local.client] = local.model.norm.running_mean.tolist()
        super().train(local)


def test_all_clients_begin_with_the_parts_of_the_model_as_the_run_has_it() -> None:
    """And not with those of the client before, nor of a model as it is built."""
    config = config_of("fedbn", rounds=1)
    with Stage.in_memory(trainer=config.trainer) as stage:
        given, strategy = federation(config, build=network), Beginnings(config.federated)
        given.loaded.model.norm.running_mean.fill_(3.0)
        clients = Federation(config, given.loaded, given.objective, given.data, strategy)
        found = rounds(stage, clients)
        assert strategy.seen == {client: [3.0] * 4 for client in CLIENTS}
        with found.model_of(CLIENTS[0]) as own:
            assert own.norm.running_mean.tolist() != [3.0] * 4


class HeadAlone(Strategy):
    def train(self, local: Any) -> None:
        local.fit(only=lambda name: name.startswith("head"))


@pytest.mark.parametrize("is_training", [True, False])
def test_where_a_part_trains_statistics_of_the_frozen_rest_stay(is_training: bool) -> None:
    config = config_of(rounds=1, trainer_learning_rates={"head": 0.1})
    with Stage.in_memory(trainer=config.trainer) as stage:
        given = federation(config, build=network)
        given.loaded.model.train(is_training)
        before = {name: value.clone() for name, value in given.loaded.model.state_dict().items()}
        rounds(stage, Federation(config, given.loaded, given.objective, given.data, HeadAlone(config.federated)))
    after = given.loaded.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"head.weight", "head.bias"}
    assert all(module.training is is_training for module in given.loaded.model.modules())


def test_rates_of_what_is_frozen_are_left_out_and_wrong_names_refused() -> None:
    config = config_of("fedrep", head=["head"], rounds=1, trainer_learning_rates={"body": 0.1})
    trained(config, build=network)
    with pytest.raises(UsageError, match="no parameter that trains has 'bdy'"):
        trained(config_of(rounds=1, trainer_learning_rates={"bdy": 0.1}), build=network)


class AtARate(Strategy):
    """All trains at the rate `config.server_learning_rate`."""

    def train(self, local: Any) -> None:
        moved = local.fit(learning_rate=self.config.server_learning_rate)
        assert moved == pytest.approx(local.num_steps * self.config.server_learning_rate)


def test_a_strategy_may_train_at_a_rate_of_its_own_and_then_no_other_counts() -> None:
    """Neither trainer.learning_rate nor trainer.learning_rates is heard."""
    found = []
    for own, everyone, rates in ((0.05, 0.01, {}), (0.05, 0.02, {"weight": 0.3}), (0.01, 0.01, {})):
        config = config_of(rounds=1, server_learning_rate=own, trainer_learning_rate=everyone)
        config.trainer.learning_rates = rates
        with Stage.in_memory(trainer=config.trainer) as stage:
            given = federation(config)
            strategy = AtARate(config.federated)
            found.append(
                weights(rounds(stage, Federation(config, given.loaded, given.objective, given.data, strategy)))
            )
    as_usual = weights(trained(config_of(rounds=1, trainer_learning_rate=0.05)))
    np.testing.assert_array_equal(found[0], as_usual)
    np.testing.assert_array_equal(found[1], as_usual)
    assert np.abs(found[2] - as_usual).max() > 0.1


class Spy(InProcess):
    """Sees the names of all tensors on the wire, both ways."""

    def __init__(self, worker: Worker, seen: set[str]) -> None:
        super().__init__(worker)
        self.seen = seen

    def run_round(self, tasks: Any) -> Any:
        for task in tasks:
            self.seen.update(wire.unpack(task.body)[0])
        for reply in super().run_round(tasks):
            assert isinstance(reply, Reply)
            self.seen.update(wire.unpack(reply.body)[0])
            yield reply


@pytest.mark.parametrize("name", ["local", "fedbn", "fedrep", "ditto", "fedavg_ft", "pfedme"])
def test_a_personal_model_fits_its_client_better_than_the_servers(name: str) -> None:
    changes = {"head": ["head"]} if name == "fedrep" else {}
    config = config_of(name, rounds=8, personal_steps=6, **changes, trainer_learning_rate=0.05)
    found = trained(config, build=network)
    model, better = found.federation.loaded.model, 0
    for number, client in enumerate(CLIENTS):
        of_server = error(model, number)
        with found.model_of(client) as own:
            better += error(own, number) < of_server
        assert error(model, number) == of_server
    assert better >= 3


@torch.no_grad()
def error(model: torch.nn.Module, number: int) -> float:
    share = Share(number)
    return float((model.eval()(share.x).squeeze(-1) - share.y).square().mean())
