"""New choices in every group, by an outside package's dataclasses and YAML files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from privlm import identity, registry
from privlm.cli.completion import candidates
from privlm.cli.compose import Words, compose
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

PACKAGE = Path(__file__).resolve().parents[1] / "fixtures" / "toy_groups"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE))
    registry.tasks.cache_clear()
    yield
    registry.tasks.cache_clear()


def test_a_task_composes_with_a_choice_of_its_own_in_every_group():
    run = compose(Words(("task=toy",)))
    config = run.config
    assert (config.privacy.clients_per_round, config.adapter.length, config.model.width) == (4, 8, 16)
    assert (config.data.format, config.trainer.local_steps, config.federated.num_clients) == ("lines", 3, 4)
    assert run.chosen_by["federated"] == "toy_clients (default)"
    assert {"model.path", "trainer.log_every"} <= set(run.roles.same_run)
    assert {"federated.engine", "trainer.processes"} <= set(run.roles.same_cell)
    assert identity.run_directory(config, "a" * 64).name == "net-lines-prefix-clients-toy_fedavg-seed0-aaaaaaaa"


def test_their_rules_are_checked_with_all_others():
    words = ("task=toy", "adapter.length=0", "adapter.layers=frist", "privacy.clients_per_round=5", "trainer.steps=0")
    with pytest.raises(UsageError) as refusal:
        compose(Words(words))
    for problem in (
        "adapter.length must be at least 1 and at most 64, not 0",
        "adapter.layers: 'frist' is not one of all, first; did you mean 'first'?",
        "privacy.clients_per_round=5 is more than there are clients",
        "trainer.steps must be greater than 0, not 0",
    ):
        assert problem in str(refusal.value)
    assert candidates("privlm run task=toy adapter.layers=") == ["adapter.layers=all", "adapter.layers=first"]


def test_a_shipped_task_takes_them_with_the_plain_values_of_its_recipe():
    run = compose(Words(("task=ewtune", "scale=smoke", "adapter=toy_prefix")))
    assert (run.config.adapter.length, run.config.trainer.steps, run.config.trainer.optimizer) == (8, 20, "adamw")
    assert run.lines == ()
