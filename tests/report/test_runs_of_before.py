"""Run directories of an earlier PrivLM, which name no roles in status.json and know no field that came later."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from omegaconf import OmegaConf
from support.composed import composed

from privlm import config as core
from privlm.cli import compare, show, tables
from privlm.cli.compose import Words, compose
from privlm.identity import ROLES_OF_BEFORE, cell_hash
from privlm.report.store import read_run
from privlm.training.schema import TrainerConfig

pytestmark = pytest.mark.torch_free

WORDS = ("task=ewtune", "model=tiny", "adapter=lora")
CAME_LATER = {
    "trainer": (
        "deterministic", "final_learning_rate", "warmup_share", "restore_best", "early_stop_metric", "early_stop_mode"
    ),
    "task": ("until",),
    "data": ("known",),
    "model": ("known",),
}  # fmt: skip
MENUS = {"presets": {"lora": {"optimizer": "adamw", "other_params": None}}, "settings": {}, "max_train_examples": {}}


@pytest.fixture
def run_of_before(make_run, tmp_path):
    """A run directory of WORDS and a seed as it was written before, on another machine."""

    def write(seed):
        config = OmegaConf.to_container(composed(*WORDS), resolve=True)
        for group, keys in CAME_LATER.items():
            config[group] = {key: value for key, value in config[group].items() if key not in keys}
        del config["federated"]
        config["task"] |= MENUS
        config |= {"seed": seed, "runs": "elsewhere/runs"}
        path = make_run(tmp_path, seed=seed, scale="smoke", overrides=WORDS, values={"accuracy": 0.9 + seed / 100})
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        status = json.loads((path / "status.json").read_text()) | {"cell_hash": "0" * 64}
        del status["same_run"], status["same_cell"]
        (path / "status.json").write_text(json.dumps(status))
        return path

    return write


@pytest.fixture
def toy_field(monkeypatch):
    """The trainer of some later PrivLM has a field more."""

    @dataclasses.dataclass
    class Trainer(TrainerConfig):
        toy: float | None = None

    monkeypatch.setitem(core.SCHEMAS["trainer"], "trainer", Trainer)


def cell_of(*words):
    run = compose(Words(words))
    return cell_hash(run.config, run.roles)


def test_it_fills_its_cell(run_of_before):
    run = read_run(run_of_before(3))
    assert run.roles == ROLES_OF_BEFORE
    assert run.cell_hash == cell_of(*WORDS)
    assert run.cell_hash != cell_of(*WORDS, "trainer.momentum=0.5")


@pytest.mark.usefixtures("toy_field")
def test_it_fills_its_cell_after_the_trainer_got_a_field_and_not_where_that_is_used(run_of_before):
    run = read_run(run_of_before(3))
    assert "toy" in compose(Words(WORDS)).config.trainer
    assert run.cell_hash == cell_of(*WORDS)
    assert run.cell_hash != cell_of(*WORDS, "trainer.toy=0.5")


@pytest.mark.usefixtures("toy_field")
def test_it_is_shown_compared_and_tabled(run_of_before, tmp_path, capsys):
    paths = [str(run_of_before(seed)) for seed in (0, 1)]
    assert show.main([paths[0]]) == 0
    assert "0.9" in capsys.readouterr().out
    assert compare.main([*paths, "--by-cell"]) == 0
    assert "(2 seeds)" in capsys.readouterr().out
    (tmp_path / "my" / "table").mkdir(parents=True)
    table = {
        "kind": "runs", "title": "toy", "seeds": 2, "metric": "accuracy", "decimals": 3, "columns": {"accuracy": {}},
        "rows": [{"name": "lora", "run": list(WORDS)}],
    }  # fmt: skip
    (tmp_path / "my" / "table" / "ewtune_toy.yaml").write_text(yaml.safe_dump(table))
    words = ["ewtune_toy", "--scale", "smoke", "--config-dir", str(tmp_path / "my"), "--runs", str(tmp_path), "--json"]
    assert tables.main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)[0]["values"]
    assert (row["accuracy"], row["seeds"]) == (pytest.approx(0.905), 2)
