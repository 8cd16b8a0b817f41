"""A job in its directory: stages, metrics, results, and the directory's life before it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from privlm import files, rundir
from privlm.errors import PrivLMError, UsageError
from privlm.identity import Roles
from privlm.job import Job, Result

pytestmark = pytest.mark.torch_free

CONFIG = OmegaConf.create({"scale": "small", "seed": 3, "task": {"name": "demo"}})


def open_job(directory: Path, rank: int = 0) -> Job:
    """The job of the next try of a run."""
    with rundir.locked(directory):
        rundir.create(
            directory, CONFIG, ["task=demo"], run_hash="a" * 64, cell_hash="b" * 64, roles=Roles(), inputs={"data": "d"}
        )
    return Job(directory, rank)


def rows(job: Job) -> list[tuple[str, int, float | str]]:
    return [(row["stage"], row["step"], row["value"]) for row in files.read_json_lines(job.directory / "metrics.jsonl")]


def test_finished_stage_is_skipped_and_its_outputs_are_trusted(tmp_path: Path) -> None:
    output = tmp_path / "table.txt"
    with open_job(tmp_path).stage("prepare") as stage:
        assert stage.needed
        output.write_text("made once")
        stage.output(output)
    with open_job(tmp_path).stage("prepare") as stage:
        assert not stage.needed


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_stage_whose_output_is_not_as_it_was_left_is_done_again(damage: str, tmp_path: Path) -> None:
    output = tmp_path / "table.txt"
    with open_job(tmp_path).stage("prepare") as stage:
        output.write_text("made")
        stage.output(output)
    output.write_text("tampered") if damage == "changed" else output.unlink()
    with open_job(tmp_path).stage("prepare") as stage:
        assert stage.needed


def test_stage_that_failed_is_done_again_without_its_old_metrics(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    with job.stage("first"):
        job.log(1, "train", loss=1.0)
    with pytest.raises(ValueError, match="could not convert"), job.stage("second"):
        job.log(1, "train", loss=2.0, note="text")  # type: ignore[arg-type]
    job = open_job(tmp_path)
    with job.stage("second") as stage:
        assert stage.needed
        job.log(1, "train", loss=3.0)
    assert rows(job) == [("first", 1, 1.0), ("second", 1, 3.0)]


def test_rewind_drops_later_steps_of_its_stage_alone(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    for step in (1, 2, 3):
        job.log(step, "train", stage="train", loss=float(step))
    job.log(9, "test", stage="other", accuracy=0.5)
    job.rewind("train", 2)
    assert rows(job) == [("train", 1, 1.0), ("train", 2, 2.0), ("other", 9, 0.5)]


def test_line_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    job.log(1, "train", loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "tr')
    job = open_job(tmp_path)
    job.log(2, "train", loss=2.0)
    assert rows(job) == [("run", 1, 1.0), ("run", 2, 2.0)]


def test_numbers_that_json_cannot_hold_are_strings(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    job.log(1, "train", loss=math.nan, norm=math.inf)
    assert [value for _, _, value in rows(job)] == ["nan", "inf"]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_text_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        open_job(tmp_path).log(1, "train", sample="a private message")  # type: ignore[arg-type]


def test_listeners_get_what_the_file_gets(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    heard: list[tuple[int, str, dict[str, float]]] = []
    job.listeners.append(lambda *row: heard.append(row))
    job.log(4, "dev", accuracy=0.5, f1=0.25)
    assert heard == [(4, "dev", {"accuracy": 0.5, "f1": 0.25})]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    open_job(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = Job(tmp_path, rank=1)
    with other.stage("train"):
        other.log(1, "train", loss=1.0)
        other.write_json("privacy.json", {"mechanism": "forged"})
    other.finish([Result("accuracy", 1.0)])
    other.pause("failed", "no")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_result_and_status_of_a_finished_run(tmp_path: Path) -> None:
    open_job(tmp_path).pause("interrupted", "SIGTERM")
    job = open_job(tmp_path)
    job.finish([Result("accuracy", 0.9, n=10, ci_low=0.8, ci_high=1.0, split="test")], status="budget_reached")
    status, result = (json.loads((tmp_path / name).read_text()) for name in ("status.json", "result.json"))
    assert (status["state"], status["reason"], status["restarts"]) == ("done", "budget_reached", 1)
    assert status["inputs"] == {"data": "d"}
    assert result["status"] == "budget_reached"
    assert result["run_hash"] == status["run_hash"] == "a" * 64
    assert result["rows"] == [
        {"metric": "accuracy", "value": 0.9, "unit": "fraction", "n": 10, "ci_low": 0.8, "ci_high": 1.0,
         "split": "test", "provenance": "measured"}
    ]  # fmt: skip


def test_a_run_whose_llm_budget_is_spent_is_not_done(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    job.finish([Result("accuracy", 0.5, n=37)], status="budget_exhausted", items=(37, 100))
    status, result = (json.loads((tmp_path / name).read_text()) for name in ("status.json", "result.json"))
    assert (status["state"], status["reason"]) == ("interrupted", "budget_exhausted: 37/100 items done")
    assert (result["status"], result["rows"][0]["n"]) == ("budget_exhausted", 37)
    open_job(tmp_path).finish([Result("accuracy", 0.6, n=100)])
    status, result = (json.loads((tmp_path / name).read_text()) for name in ("status.json", "result.json"))
    assert (status["state"], result["status"], result["rows"][0]["n"]) == ("done", "done", 100)


@pytest.mark.parametrize(("scale", "provenance"), [("small", "replayed"), ("smoke", "smoke")])
def test_recorded_answers_are_no_measurement(scale: str, provenance: str, tmp_path: Path) -> None:
    open_job(tmp_path)
    config = OmegaConf.merge(CONFIG, {"scale": scale, "llm": {"backend": "replay"}})
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    Job(tmp_path).finish([Result("accuracy", 0.9)])
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["provenance"] == provenance


def test_privacy_json_is_never_missing(tmp_path: Path) -> None:
    open_job(tmp_path)
    assert json.loads((tmp_path / "privacy.json").read_text()) == {"mechanism": "none", "trains": False}


def test_second_holder_is_told_about_the_first(tmp_path: Path) -> None:
    with (
        rundir.locked(tmp_path),
        pytest.raises(PrivLMError, match=r"in use by process \d+ on "),
        rundir.locked(tmp_path),
    ):
        pass
    with rundir.locked(tmp_path):
        pass


def test_folder_that_cannot_be_made_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="set runs=FOLDER"), rundir.locked(tmp_path / "file" / "run"):
        pass
