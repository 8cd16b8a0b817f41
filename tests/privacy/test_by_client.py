"""Client-level privacy as a mechanism: its plan, its ledger, its card, and who refuses it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.composed import composed
from support.regression import Points, Squares, settings
from torch import nn

from privlm.cli import accountant
from privlm.config import check, defaults
from privlm.errors import UsageError
from privlm.fit import fit, plan_of
from privlm.forecast import privacy as forecast
from privlm.job import Stage
from privlm.models.loaded import Loaded
from privlm.privacy import accounting
from privlm.privacy.account import account, price_rows
from privlm.privacy.accounting import Segment
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.privacy.schema import PrivacyConfig, is_private, is_private_by_client, is_private_by_record
from privlm.report.card import privacy_card

CLIENTS, FRACTION, ROUNDS = 30, 0.25, 12


def privacy(**changes: Any) -> PrivacyConfig:
    return defaults(PrivacyConfig, "privacy", "dp_fedavg", **({"delta": 1e-2} | changes))


def plan(*, fraction: float = FRACTION, **changes: Any) -> PrivacyPlan:
    how = {"dataset_size": CLIENTS, "batch_size": fraction * CLIENTS, "steps": ROUNDS}
    return make_plan(privacy(**changes), **how, unit="client", mechanism="dp_fedavg", compare=False)


def test_the_plan_of_rounds_is_that_of_steps_with_clients_for_records() -> None:
    found = plan()
    assert (found.unit, found.mechanism, found.sampling_rate, found.expected_batch_size) == (
        "client", "dp_fedavg", FRACTION, 7.5
    )  # fmt: skip
    segments = [Segment(FRACTION, found.noise_multiplier, ROUNDS)]
    assert found.epsilon == accounting.epsilon(segments, 1e-2).epsilon
    assert 8.0 - 1e-3 <= found.epsilon <= 8.0
    assert plan(delta="1/2N").delta == 1 / 60


def test_what_clients_cannot_have_is_refused_in_their_words() -> None:
    with pytest.raises(UsageError, match=r"federated\.fraction: 45 clients of 30 are expected in a round: lower it"):
        plan(fraction=1.5)
    with pytest.raises(UsageError, match=r"privacy\.delta = 0\.04 is not below 1/N"):
        plan(delta=0.04)
    assert plan(delta=0.04, allow_large_delta=True).warnings


def test_an_epsilon_per_client_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, ledger = plan(), Ledger(tmp_path / "run" / "privacy_ledger.jsonl")
    setting = Setting(FRACTION, found.noise_multiplier, 1.0, 7.5, found.unit)
    for number in range(1, 1 + ROUNDS):
        ledger.of("train").record(number, setting, str(number))
    told = account({"train": found}, ledger, steps={"train": ROUNDS}, flags=[])
    card = privacy_card(told)
    facts = dict(card.facts)
    assert card.headline == "guarantee: (8.000, 0.01)-differential privacy per client"
    assert facts["mechanism"] == "dp_fedavg"
    assert (facts["clients N"], facts["expected clients a round"], facts["rounds T"]) == ("30", "7.5", "12")
    assert facts["planned"] == "12 rounds, ε 8.000"
    assert not {"training examples N", "steps T", "expected batch size"} & set(facts)
    assert price_rows(told)[0].value == found.epsilon
    (tmp_path / "run" / "status.json").write_text('{"schema": 1, "state": "interrupted"}')
    words = ["ledger", str(tmp_path / "run"), "--delta", "1e-2", "--adjacency", "add_remove", "--unit"]
    assert accountant.main([*words, "client"]) == 0
    assert "unit client" in capsys.readouterr().out
    with pytest.raises(UsageError, match="nothing was released that protects a record"):
        accountant.main([*words, "record"])


def test_an_epsilon_per_client_and_one_per_record_are_not_told_together() -> None:
    record = make_plan(privacy(delta=1e-4), dataset_size=1000, batch_size=10, steps=3, compare=False)
    with pytest.raises(UsageError, match=r"privacy\.mechanism differs between the stages"):
        account({"a": plan(), "b": record}, Ledger(), steps={"a": 0, "b": 0})


# --- who refuses it -------------------------------------------------------------------------------------------------


def problems(**changes: Any) -> list[str]:
    """Of the configuration of a run with clients."""
    config = OmegaConf.merge(composed("task=ewtune", "scale=smoke"), {"federated": {"name": "fedavg"}})
    OmegaConf.set_readonly(config, False)
    config.privacy = OmegaConf.structured(privacy(**changes))
    return [problem for problem in check(config) if problem.startswith("privacy")]


def test_client_level_privacy_asks_for_clients_and_a_delta() -> None:
    assert problems() == []
    assert problems(delta=None) == [
        "privacy.delta must be given with privacy=dp_fedavg: below 1 / the number of clients, or 1/2N"
    ]
    assert problems(clipping="per_layer") == [
        "privacy.clipping=per_layer is of gradients: with privacy=dp_fedavg use flat"
    ]
    with pytest.raises(
        UsageError, match="privacy=dp_fedavg protects clients, and this run has none: it needs federated="
    ):
        composed("task=ewtune", "scale=smoke", "privacy=dp_fedavg", "privacy.delta=1e-3")


@pytest.mark.parametrize("task", ["ewtune", "pkg", "llm_adapters", "causal", "llm_programs"])
def test_no_task_without_clients_takes_it(task: str) -> None:
    with pytest.raises(UsageError, match="this run has none: it needs federated="):
        composed(f"task={task}", "scale=smoke", "privacy=dp_fedavg", "privacy.delta=1e-3")


def test_who_trains_records_never_trains_them_unclipped_under_it(tmp_path: Path) -> None:
    config = SimpleNamespace(privacy=privacy(), trainer=settings(steps=2, epochs=None))
    with pytest.raises(UsageError, match=r"clips what clients send, and this trains one model.*take privacy=dp_sgd"):
        plan_of(config, 100)
    with pytest.raises(UsageError, match="this trains one model"):
        forecast(config, dataset_size=100, steps=2)
    loaded = Loaded.of(lambda: nn.Linear(3, 1), made_of="linear")
    with (
        pytest.raises(UsageError, match="stage train trains one model"),
        Stage.at(tmp_path, trainer=config.trainer, privacy=config.privacy) as stage,
    ):
        fit(stage, loaded, Squares(), Points(), plan=plan())


def test_the_mechanisms_are_told_apart() -> None:
    kinds = {
        name: SimpleNamespace(privacy=defaults(PrivacyConfig, "privacy", name))
        for name in ("none", "dp_sgd", "dp_fedavg")
    }
    asked = (is_private, is_private_by_record, is_private_by_client)
    assert {name: [ask(config) for ask in asked] for name, config in kinds.items()} == {
        "none": [False, False, False],
        "dp_sgd": [True, True, False],
        "dp_fedavg": [True, False, True],
    }
