"""Which configurations are the same run, and which fall into the same cell of a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig
from support.composed import composed

from privlm import identity

pytestmark = pytest.mark.torch_free

INPUTS = {"data": "1" * 64, "model": "2" * 64}


def config(*overrides: str) -> DictConfig:
    return composed("task=ewtune", *overrides)


def hashes(*overrides: str, **inputs: str) -> tuple[str, str]:
    composed = config(*overrides)
    return identity.run_hash(composed, INPUTS | inputs), identity.cell_hash(composed)


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
