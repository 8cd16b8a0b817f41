"""Which configurations are the same run, and which fall into the same cell of a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from privlm import identity
from privlm.cli.compose import Words, compose

pytestmark = pytest.mark.torch_free

INPUTS = {"data": "1" * 64, "model": "2" * 64}


def config(*overrides: str) -> DictConfig:
    return compose(Words(("task=ewtune", *overrides))).config


def hashes(*overrides: str, **inputs: str) -> tuple[str, str]:
    composed = compose(Words(("task=ewtune", *overrides)))
    run_hash = identity.run_hash(composed.config, INPUTS | inputs, composed.roles)
    return run_hash, identity.cell_hash(composed.config, composed.roles)


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


def test_a_null_enters_no_hash_however_deep_it_lies() -> None:
    content = {"trainer": {"steps": 3}, "list": [{"a": 1}]}
    with_nulls = {"trainer": {"steps": 3, "ema": None}, "list": [{"a": 1, "b": None}], "federated": None}
    assert identity.cell_hash(with_nulls, Roles()) == identity.cell_hash(content, Roles())
    assert identity.cell_hash({**content, "federated": {}}, Roles()) != identity.cell_hash(content, Roles())


@pytest.mark.parametrize("overrides", [("model=roberta",), ("scale=smoke", "adapter=rgp"), ("task=causal", "llm=qwen")])
def test_the_cell_is_the_same_from_config_yaml_as_when_composed(overrides: tuple[str, ...]) -> None:
    composed = compose(Words(("task=ewtune", *overrides)[-3:] if overrides[0][:5] != "task=" else overrides))
    written = yaml.safe_load(OmegaConf.to_yaml(composed.config))
    assert identity.cell_hash(written, composed.roles) == identity.cell_hash(composed.config, composed.roles)


def test_two_runs_whose_first_digits_collide_get_directories_of_their_own(tmp_path: Path) -> None:
    composed = config(f"runs={tmp_path}")
    first, second = "a" * 64, "a" * 8 + "b" * 56
    directory = identity.run_directory(composed, first)
    directory.mkdir(parents=True)
    (directory / "status.json").write_text(json.dumps({"run_hash": first}))
    assert identity.run_directory(composed, first) == directory
    assert identity.run_directory(composed, second) == directory.with_name(directory.name + "b" * 8)


def test_names_of_directories_are_short_and_plain(tmp_path: Path) -> None:
    composed = config("model.name=org/" + "x" * 300, f"runs={tmp_path}")
    name = identity.run_directory(composed, RUN).name
    assert len(name) < 120
    assert "/" not in name
    identity.run_directory(composed, RUN).mkdir(parents=True)
