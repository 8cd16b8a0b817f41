"""LoRA in federated rounds: what the server computes is the mean of what the clients compute, or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.federation import config_of
from support.tiny_causal import VOCABULARY, tiny

from privlm.adapters.adapter import apply_adapter
from privlm.config import AdapterConfig, defaults
from privlm.errors import UsageError
from privlm.federated import wire
from privlm.federated.engine import InProcess
from privlm.federated.federation import Federation
from privlm.federated.lora_exchange import LoraExchange
from privlm.federated.messages import Reply
from privlm.federated.outcome import Federated
from privlm.federated.rounds import rounds
from privlm.federated.worker import Worker
from privlm.job import Stage
from privlm.models.loaded import Loaded
from privlm.signals import Interrupted
from privlm.training.next_token import NextToken

RANK, CLIENTS = 4, ("a", "b", "c")
SIZES = {"a": 8, "b": 4, "c": 4}


class Tokens:
    """Rows of random tokens, of another distribution for each client."""

    lengths = None

    def __init__(self, seed: int, number: int) -> None:
        rng = np.random.default_rng(seed)
        self.ids = torch.from_numpy(rng.integers(2, VOCABULARY // (seed + 1), (number, 6)))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Any) -> dict[str, torch.Tensor]:
        ids = self.ids[indices]
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions, "labels": ids}


def build() -> torch.nn.Module:
    adapter = defaults(AdapterConfig, "adapter", "lora", rank=RANK, alpha=2 * RANK, dropout=0.0)
    return apply_adapter(tiny("llama"), adapter, seed=0)


def federation(lora: str, **changes: Any) -> Federation:
    base: dict[str, Any] = {"rounds": 2, "trainer_learning_rate": 0.5, "trainer_batch_size": 4, "lora": lora}
    config = config_of(**(base | changes))
    data = {client: Tokens(number, SIZES[client]) for number, client in enumerate(CLIENTS)}
    return Federation(config, Loaded.of(build, made_of="tiny llama with LoRA"), NextToken(), data)


def trained(clients: Federation, folder: Path | None = None, **options: Any) -> Federated:
    trainer = clients.config.trainer
    with Stage.in_memory(trainer=trainer) if folder is None else Stage.at(folder, trainer=trainer) as stage:
        return rounds(stage, clients, **options)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What each adapted layer multiplies with, float64."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            change = module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
            found[name] = (module.base_layer.weight.double() + module.scaling["default"] * change).detach()
    return found


class Watch(InProcess):
    """Keeps what each client's layers multiply with at the end of its work."""

    def __init__(self, worker: Worker, seen: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(worker)
        self.seen = seen

    def run_round(self, tasks: Any) -> Any:
        self.seen.clear()
        for reply in super().run_round(tasks):
            self.seen.append(weights(self.worker.federation.loaded.model))
            yield reply


def missed(lora: str, **changes: Any) -> float:
    """How far the server's weights are from the mean of the clients', relative to how far these have moved."""
    clients, seen = federation(lora, **changes), list[dict[str, torch.Tensor]]()
    start = weights(clients.loaded.model)
    found = trained(clients, engine=lambda worker: Watch(worker, seen))
    total = sum(SIZES.values())
    shares = [SIZES[client] / total for client in CLIENTS]
    off, moved = 0.0, 0.0
    for name, value in weights(found.federation.loaded.model).items():
        mean = sum(share * state[name] for share, state in zip(shares, seen, strict=True))
        off += float((value - mean).square().sum())
        moved += float((mean - start[name]).square().sum())
    return (off / moved) ** 0.5


@pytest.mark.parametrize("lora", ["ffa", "stack", "residual"])
def test_exact_aggregations_are_the_mean_of_what_clients_compute(lora: str) -> None:
    assert missed(lora) < 1e-5


def test_factors_averaged_apart_are_not_and_the_best_of_the_rank_is_nearer() -> None:
    apart, best = missed("separate"), missed("svd")
    assert 0.01 < best < apart


def test_the_error_is_logged_where_asked_for(tmp_path: Path) -> None:
    trained(federation("separate", report_lora_error=True), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"lora_error"' in row for row in rows) == 2


@pytest.mark.parametrize("lora", ["svd", "stack", "zero_pad"])
def test_clients_of_lower_rank_send_and_train_no_more_than_theirs(lora: str) -> None:
    sizes: dict[str, set[int]] = {client: set() for client in CLIENTS}

    class Sizes(InProcess):
        def run_round(self, tasks: Any) -> Any:
            for reply in super().run_round(tasks):
                assert isinstance(reply, Reply)
                sent = wire.unpack(reply.body)[0]
                sizes[reply.client] |= {len(value) for name, value in sent.items() if ".lora_A." in name}
                yield reply

    trained(federation(lora, ranks={"b": 2}), engine=Sizes)
    assert sizes == {"a": {RANK}, "b": {2}, "c": {RANK}}
    if lora == "stack":
        assert missed(lora, ranks={"b": 2}) < 1e-5


def test_a_rank_above_the_models_is_refused() -> None:
    with pytest.raises(UsageError, match=r"federated\.ranks\.b=9 is above adapter\.rank=4"):
        trained(federation("svd", ranks={"b": 9}))


@pytest.mark.parametrize("lora", ["stack", "residual", "ffa", "svd"])
def test_what_is_kept_is_what_was_trained_also_after_a_round_too_few(tmp_path: Path, lora: str) -> None:
    whole = trained(federation(lora), tmp_path / "whole")
    part = federation(lora)
    with pytest.raises(Interrupted), Stage.at(tmp_path / "parts", trainer=part.config.trainer) as stage:
        rounds(stage, part, engine=lambda worker: StopsAfterOne(worker, stage))
    found = trained(federation(lora), tmp_path / "parts")
    assert found.outcome == whole.outcome
    ours, theirs = (weights(one.federation.loaded.model) for one in (found, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    again = trained(federation(lora), tmp_path / "whole")  # a finished stage loads
    assert all(torch.equal(value, theirs[name]) for name, value in weights(again.federation.loaded.model).items())


class StopsAfterOne(InProcess):
    """Asks the run to stop in its first round."""

    def __init__(self, worker: Worker, stage: Stage) -> None:
        super().__init__(worker)
        self.stage = stage

    def run_round(self, tasks: Any) -> Any:
        self.stage.job.stop.signum = 15
        yield from super().run_round(tasks)


def test_an_exchange_without_rounds_leaves_the_model_alone() -> None:
    model = build()
    before = weights(model)
    exchange = LoraExchange(model, lambda name: False, federation("svd").config.federated)
    exchange.put(exchange.take())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
