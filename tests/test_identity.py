"""Which configurations are the same run, and which fall into the same cell of a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from support.composed import composed, composition

from privlm import identity
from privlm.content import Content
from privlm.identity import Roles

pytestmark = pytest.mark.torch_free

INPUTS = {"data": "1" * 64, "model": "2" * 64}


def config(*overrides: str) -> DictConfig:
    return composed("task=ewtune", *overrides)


def hashes(*overrides: str, **inputs: str) -> tuple[str, str]:
    run = composition("task=ewtune", *overrides)
    run_hash = identity.run_hash(run.config, INPUTS | inputs, run.roles)
    return run_hash, identity.cell_hash(run.config, run.roles)


RUN, CELL = hashes()


@pytest.mark.parametrize(
    "override",
    [
        "runs=elsewhere",
        "tracker=wandb",
        "trainer.log_every=3",
        "trainer.checkpoint_every=7",
        "data.path=/moved/messages.txt",
        "model=minilm",
        "privacy.epsilon=3",
        "task.until=train",
    ],
)
def test_same_run(override: str) -> None:
    assert hashes(override) == (RUN, CELL)


@pytest.mark.parametrize("override", ["seed=1", "trainer=ddp", "trainer.micro_batch_size=8"])
def test_another_run_of_the_same_cell(override: str) -> None:
    run, cell = hashes(override)
    assert run != RUN
    assert cell == CELL


def test_changed_data_is_another_run_of_the_same_cell() -> None:
    run, cell = hashes(data="3" * 64)
    assert run != RUN
    assert cell == CELL


@pytest.mark.parametrize("override", ["privacy.epsilon=8", "privacy=none", "adapter=lora", "trainer.batch_size=128"])
def test_another_experiment(override: str) -> None:
    run, cell = hashes(override)
    assert run != RUN
    assert cell != CELL


def test_who_changes_the_hash_counts_the_rules_up() -> None:
    content = {"seed": 1, "trainer": {"steps": 3, "ema": None}, "list": [{"a": 1.5, "b": None}], "runs": "here"}
    roles = Roles(same_run=("runs",), same_cell=("seed",))
    assert identity.RULES == 1
    assert identity.cell_hash(content, roles, {"data": "1" * 64}).startswith("ceec6c27f63a221f")


def test_a_null_enters_no_hash_however_deep_it_lies() -> None:
    content = {"trainer": {"steps": 3}, "list": [{"a": 1}]}
    with_nulls = {"trainer": {"steps": 3, "ema": None}, "list": [{"a": 1, "b": None}], "federated": None}
    assert identity.cell_hash(with_nulls, Roles()) == identity.cell_hash(content, Roles())
    assert identity.cell_hash({**content, "federated": {}}, Roles()) != identity.cell_hash(content, Roles())


@pytest.mark.parametrize(
    "words",
    [
        ("task=ewtune", "model=roberta", "task.setting=li"),
        ("task=ewtune", "scale=smoke", "adapter=rgp", "trainer.learning_rate=1e-7"),
        ("task=causal", "llm=qwen", "task.suite=[arctic,crass]"),
    ],
)
def test_the_cell_is_the_same_from_config_yaml_as_when_composed(words: tuple[str, ...], tmp_path: Path) -> None:
    run = composition(*words)
    OmegaConf.save(run.config, tmp_path / "config.yaml", resolve=True)
    read = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"))
    assert isinstance(read, dict)
    assert identity.cell_hash(read, run.roles) == identity.cell_hash(run.config, run.roles)


def test_two_runs_whose_first_digits_collide_get_directories_of_their_own(tmp_path: Path) -> None:
    one = config(f"runs={tmp_path}")
    first, second = "a" * 64, "a" * 8 + "b" * 56
    directory = identity.run_directory(one, first)
    directory.mkdir(parents=True)
    (directory / "status.json").write_text(json.dumps({"run_hash": first}))
    assert identity.run_directory(one, first) == directory
    assert identity.run_directory(one, second) == directory.with_name(directory.name + "b" * 8)


def test_names_of_directories_are_short_and_plain(tmp_path: Path) -> None:
    one = config("model.name=org/" + "x" * 300, f"runs={tmp_path}")
    name = identity.run_directory(one, RUN).name
    assert len(name) < 120
    assert "/" not in name
    identity.run_directory(one, RUN).mkdir(parents=True)


def test_a_run_that_is_there_keeps_its_directory_whatever_its_data_are_called_now(tmp_path: Path) -> None:
    one = config(f"runs={tmp_path}")
    there = identity.run_directory(one, RUN)
    own = {"data": Content("messages", "1" * 64, known=False)}
    assert identity.run_directory(one, RUN, own).name == there.name.replace("sms_spam", "messages")
    there.mkdir(parents=True)
    (there / "status.json").write_text(json.dumps({"run_hash": RUN}))
    assert identity.run_directory(one, RUN, own) == there


def test_own_content_is_another_cell() -> None:
    run = composition("task=ewtune")
    own = identity.cell_hash(run.config, run.roles, {"data": "1" * 64})
    assert len({CELL, own, identity.cell_hash(run.config, run.roles, {"data": "2" * 64})}) == 3
    assert identity.cell_hash(run.config, run.roles, {}) == CELL
