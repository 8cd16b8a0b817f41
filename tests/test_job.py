"""A job in its directory: stages, metrics, results, and the directory's life before it."""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from privlm import files, launch, leftovers, rundir
from privlm.errors import PrivLMError, UsageError
from privlm.identity import Roles
from privlm.job import Job, StoppedAfter
from privlm.metrics.estimate import Estimate
from privlm.report import store
from privlm.results import Result
from privlm.rows import Keep, answer_open, answered
from privlm.signals import Interrupted

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
    with job.stage("first") as stage:
        stage.log(1, "train", loss=1.0)
    with pytest.raises(ValueError, match="could not convert"), job.stage("second") as stage:
        stage.log(1, "train", loss=2.0, note="text")  # type: ignore[arg-type]
    job = open_job(tmp_path)
    with job.stage("second") as stage:
        assert stage.needed
        stage.log(1, "train", loss=3.0)
    assert rows(job) == [("first", 1, 1.0), ("second", 1, 3.0)]


def test_rewind_drops_later_steps_of_its_stage_alone(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    with job.stage("other") as other:
        other.log(9, "test", accuracy=0.5)
    with job.stage("train") as stage:
        for step in (1, 2, 3):
            stage.log(step, "train", loss=float(step))
        stage.rewind(2)
    assert rows(job) == [("other", 9, 0.5), ("train", 1, 1.0), ("train", 2, 2.0)]


def test_a_point_that_is_logged_again_after_a_kill_is_there_once(tmp_path: Path) -> None:
    for value in (0.5, 0.75):
        job = open_job(tmp_path)
        with contextlib.suppress(KeyboardInterrupt), job.stage("train") as stage:
            stage.checkpoints.mkdir(parents=True, exist_ok=True)  # it goes on: what was logged before it stays
            stage.log(1, "train", loss=value)
            stage.log(4, "dev", series={"client": 1}, accuracy=value)
            stage.log(4, "dev", series={"client": 2}, accuracy=value)
            raise KeyboardInterrupt
    assert rows(job) == [("train", 1, 0.75), ("train", 4, 0.75), ("train", 4, 0.75)]


def test_line_cut_short_by_a_kill_is_removed(tmp_path: Path) -> None:
    with open_job(tmp_path).stage("first") as stage:
        stage.log(1, "train", loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "tr')
    job = open_job(tmp_path)
    with job.stage("first"), job.stage("second") as stage:
        stage.log(2, "train", loss=2.0)
    assert rows(job) == [("first", 1, 1.0), ("second", 2, 2.0)]


def test_a_line_of_metrics_that_the_disk_has_damaged_is_left_out(tmp_path: Path) -> None:
    with open_job(tmp_path).stage("first") as stage:
        for step in (1, 2, 3):
            stage.log(step, "train", loss=float(step))
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * (len(lines[1]) - 1) + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    with open_job(tmp_path).stage("first"), open_job(tmp_path).stage("second") as stage:
        stage.log(1, "train", loss=9.0)
    assert rows(open_job(tmp_path)) == [("first", 1, 1.0), ("first", 3, 3.0), ("second", 1, 9.0)]


def test_numbers_that_json_cannot_hold_are_strings(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    with job.stage("train") as stage:
        stage.log(1, "train", loss=math.nan, norm=math.inf)
    assert [value for _, _, value in rows(job)] == ["nan", "inf"]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_text_is_no_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not convert"), open_job(tmp_path).stage("train") as stage:
        stage.log(1, "train", sample="a private message")  # type: ignore[arg-type]


def test_listeners_get_what_the_file_gets(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    heard: list[tuple[Any, ...]] = []
    job.listeners.append(lambda *row: heard.append(row))
    with job.stage("rounds") as stage:
        stage.log(4, "dev", series={"client": 3}, accuracy=0.5, f1=0.25)
    assert heard == [("rounds", 4, "dev", {"client": 3}, {"accuracy": 0.5, "f1": 0.25})]
    lines = files.read_json_lines(tmp_path / "metrics.jsonl")
    assert [(line["name"], line["client"]) for line in lines] == [("accuracy", 3), ("f1", 3)]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    open_job(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = Job(tmp_path, rank=1)
    with other.stage("train") as stage:
        stage.log(1, "train", loss=1.0)
        stage.report(accuracy=1.0)
    other.finish()
    other.pause("failed", "no")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- reports --------------------------------------------------------------------------------------------------------


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    status, result = (json.loads((directory / name).read_text()) for name in ("status.json", "result.json"))
    return status, result


def test_result_and_status_of_a_finished_run(tmp_path: Path) -> None:
    open_job(tmp_path).pause("interrupted", "SIGTERM")
    job = open_job(tmp_path)
    job.note("120 messages")
    job.mark("subset")
    with job.stage("train") as stage:
        stage.ended("budget_reached")
    with job.stage("evaluate") as stage:
        stage.report(split="test", accuracy=Estimate(0.9, 0.8, 1.0, 10))
        stage.report(unit="parameters", parameters=3)
    job.finish()
    status, result = read(tmp_path)
    assert (status["state"], status["reason"], status["restarts"]) == ("done", "budget_reached", 1)
    assert status["inputs"] == {"data": "d"}
    assert (result["status"], result["notes"], result["marks"]) == ("budget_reached", ["120 messages"], ["subset"])
    assert result["run_hash"] == status["run_hash"] == "a" * 64
    assert result["rows"] == [
        {"metric": "accuracy", "value": 0.9, "unit": "fraction", "n": 10, "ci_low": 0.8, "ci_high": 1.0,
         "split": "test", "provenance": "measured", "no_interval": None},
        {"metric": "parameters", "value": 3, "unit": "parameters", "n": None, "ci_low": None, "ci_high": None,
         "split": None, "provenance": "measured", "no_interval": None},
    ]  # fmt: skip


def test_an_estimate_of_too_few_says_why_it_has_no_interval() -> None:
    row = Result.of("accuracy", Estimate(1.0, None, None, 2), unit="fraction", split="test")
    assert (row.interval(".4f"), Result("edges", 3.0, "edges").interval(".4f")) == ("n too small", "")
    assert Result.from_json(asdict(row)) == row


def test_reports_of_a_finished_stage_are_read_back(tmp_path: Path) -> None:
    with open_job(tmp_path).stage("evaluate") as stage:
        stage.report(split="dev", accuracy=0.75)
    job = open_job(tmp_path)
    with job.stage("evaluate") as stage:
        assert not stage.needed
        stage.report(split="dev", accuracy=0.0)  # of a body that does not ask: what was reported first stands
        stage.log(1, "dev", accuracy=0.0)
    job.finish()
    assert [row["value"] for row in read(tmp_path)[1]["rows"]] == [0.75]
    assert rows(job) == []


def test_a_stage_that_is_done_again_has_the_later_ones_done_again(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    for name in ("train", "evaluate"):
        with job.stage(name) as stage:
            (stage.folder / "out.txt").write_text(name)
            stage.output(stage.folder / "out.txt")
            stage.log(1, "dev", loss=1.0)
    (tmp_path / "stages" / "train" / "out.txt").write_text("tampered")
    job = open_job(tmp_path)
    with job.stage("train") as stage:
        assert stage.needed
    with job.stage("evaluate") as stage:
        assert stage.needed, "it was made from what train made before"
        assert not list(stage.folder.iterdir())
    assert rows(job) == []


def test_temporary_outputs_are_made_again_without_touching_later_stages_and_go_with_the_end(tmp_path: Path) -> None:
    def work(job: Job) -> list[bool]:
        needed = []
        with job.stage("features", temporary=True) as stage:
            needed.append(stage.needed)
            (stage.folder / "features").write_text("of private texts")
            stage.output(stage.folder / "features")
        with job.stage("train") as stage:
            needed.append(stage.needed)
        return needed

    assert work(open_job(tmp_path)) == [True, True]
    (tmp_path / "stages" / "features" / "features").unlink()
    job = open_job(tmp_path)
    assert work(job) == [True, False]
    job.finish()
    assert not (tmp_path / "stages" / "features").exists()


class Killed(Exception):
    pass


def test_a_kill_after_the_result_leaves_nothing_made_of_private_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_job(tmp_path)
    with job.stage("features", temporary=True) as stage:
        (stage.folder / "features").write_text("of private texts")
    with job.stage("train") as stage:
        stage.checkpoints.mkdir(parents=True)
        stage.discard(stage.checkpoints)  # a memory of examples lies in them
        (stage.folder / ".model.tmp").mkdir()
    monkeypatch.setattr(job.records, "update", lambda **changes: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        job.finish()
    assert (tmp_path / "result.json").exists()
    assert files.read_json(tmp_path / "status.json")["state"] == "running"
    assert list((tmp_path / "stages").rglob("*")) == [tmp_path / "stages" / "train"]
    assert not (tmp_path / "checkpoints" / "train").exists()


def test_what_a_finished_run_has_left_is_found_by_what_its_stages_say(tmp_path: Path) -> None:
    features, of_before = tmp_path / "stages" / "mine", tmp_path / "stages" / "features" / "features.safetensors"
    kept = tmp_path / "stages" / "train" / "model"
    for path in (features / "texts", of_before, kept / "weights"):
        path.parent.mkdir(parents=True)
        path.write_text("made of texts")
    status = {"stages": {"mine": {"discard": ["stages/mine"]}, "features": {}, "train": {"discard": []}}}
    assert leftovers.of_run(tmp_path, status | {"state": "interrupted"}) == []
    assert leftovers.remove(tmp_path, status | {"state": "done"}) == [of_before, features]
    assert leftovers.of_run(tmp_path, status | {"state": "done"}) == []
    assert (kept / "weights").exists()


@pytest.mark.parametrize("killed_at", range(4))
def test_directory_that_was_cleared_half_way_is_no_finished_run(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_job(tmp_path)
    with job.stage("train") as stage:
        stage.log(1, "dev", loss=1.0)
    job.finish()
    real, removed = files.remove, []

    def remove(path: Path) -> None:
        if len(removed) == killed_at:
            raise Killed
        removed.append(path)
        real(path)

    monkeypatch.setattr(files, "remove", remove)
    assert rundir.mark_cleared(tmp_path, "a" * 64)
    with pytest.raises(Killed):
        rundir.empty(tmp_path, keep=())
    monkeypatch.undo()
    assert rundir.is_cleared(tmp_path)
    assert not launch.is_done(tmp_path)
    rundir.empty(tmp_path, keep=())
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize("name", ["status.json", "result.json", "privacy.json", "metrics.jsonl", "config.yaml"])
def test_changed_byte_of_a_finished_run_is_noticed_by_its_readers(name: str, tmp_path: Path) -> None:
    job = open_job(tmp_path)
    with job.stage("train") as stage:
        stage.log(1, "dev", loss=1.0)
        stage.report(accuracy=0.5)
    job.finish()
    assert store.read_run(tmp_path).problems == []
    path = tmp_path / name
    path.write_text(path.read_text().replace("1", "2").replace("none", "nine").replace("seed: 3", "seed: 4"))
    run = store.read_run(tmp_path)
    _ = run.config, run.privacy, run.metrics()
    if name == "status.json":  # without it nobody knows that the run is done
        with pytest.raises(UsageError, match=r"status\.json is damaged \(its content .*\): restore it .* with --force"):
            launch.is_done(tmp_path)
    else:
        assert launch.is_done(tmp_path) == (name != "result.json")
    assert [problem for problem in run.problems if problem.startswith(f"{name} cannot be read: it")]


def test_item_whose_line_is_damaged_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def answer(items: Mapping[str, int], keep: Keep) -> None:
        for name, number in items.items():
            asked.append(name)
            keep(name, {"square": number**2})

    file = tmp_path / "answers.jsonl"
    items = {"a": 2, "b": 3}
    answer_open(file, items, answer, lambda done: None)
    file.write_text(file.read_text().replace('"square": 4', '"square": 5'))
    answer_open(file, items, answer, lambda done: None)
    assert asked == ["a", "b", "a"]
    assert answered(file, items)["a"] == {"item": "a", "square": 4}
    assert "damaged lines are left out: 1" in caplog.text


def test_a_run_whose_llm_budget_is_spent_is_not_done(tmp_path: Path) -> None:
    job = open_job(tmp_path)
    with job.stage("ask") as stage:
        stage.report(n=37, accuracy=0.5)
        stage.stop("budget_exhausted", 37, 100)
    job.finish()
    status, result = read(tmp_path)
    assert (status["state"], status["reason"]) == ("interrupted", "budget_exhausted: 37/100 items done")
    assert (result["status"], result["rows"][0]["n"]) == ("budget_exhausted", 37)
    job = open_job(tmp_path)
    with job.stage("ask") as stage:
        assert stage.needed
        stage.report(n=100, accuracy=0.6)
    job.finish()
    status, result = read(tmp_path)
    assert (status["state"], result["status"], result["rows"][0]["n"]) == ("done", "done", 100)


@pytest.mark.parametrize(("scale", "provenance"), [("small", "replayed"), ("smoke", "smoke")])
def test_recorded_answers_are_no_measurement(scale: str, provenance: str, tmp_path: Path) -> None:
    open_job(tmp_path)
    config = OmegaConf.merge(CONFIG, {"scale": scale, "llm": {"backend": "replay"}})
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    job = Job(tmp_path)
    with job.stage("ask") as stage:
        stage.report(accuracy=0.9)
    job.finish()
    assert read(tmp_path)[1]["rows"][0]["provenance"] == provenance


def test_until_stops_after_the_named_stage_and_the_next_command_goes_on(tmp_path: Path) -> None:
    open_job(tmp_path)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.merge(CONFIG, {"task": {"until": "train"}})))
    job = Job(tmp_path)
    with job.stage("features"):
        pass
    with pytest.raises(StoppedAfter, match="train"), job.stage("train"):
        pass
    job = open_job(tmp_path)
    with job.stage("features") as features, job.stage("train") as train, job.stage("evaluate") as evaluate:
        assert [features.needed, train.needed, evaluate.needed] == [False, False, True]


# --- rows -----------------------------------------------------------------------------------------------------------

ITEMS = {"a": 1, "b": 2, "c": 3}


def test_rows_are_kept_one_by_one_and_only_open_items_are_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(items: Mapping[str, int], keep: Keep, fail_at: str = "") -> None:
        for name, number in reversed(items.items()):
            if name == fail_at:
                raise RuntimeError(name)
            asked.append(name)
            keep(name, {"square": number**2})

    with pytest.raises(RuntimeError, match="a"), open_job(tmp_path).stage("ask") as stage:
        stage.rows("answers.jsonl", ITEMS, lambda items, keep: answer(items, keep, fail_at="a"))
    file = tmp_path / "stages" / "ask" / "answers.jsonl"
    with open(file, "a") as torn:
        torn.write('{"item": "a", "squ')
    with open_job(tmp_path).stage("ask") as stage:
        found = stage.rows("answers.jsonl", ITEMS, answer)
    assert asked == ["c", "b", "a"]
    assert found == [{"item": name, "square": number**2} for name, number in ITEMS.items()]
    with open_job(tmp_path).stage("ask") as stage:
        assert stage.rows("answers.jsonl", ITEMS, answer) == found
    assert len(asked) == 3


def test_a_request_to_stop_is_honoured_between_two_items(tmp_path: Path) -> None:
    job = open_job(tmp_path)

    def answer(items: Mapping[str, int], keep: Keep) -> None:
        for name in items:
            job.stop.signum = signal.SIGTERM
            keep(name, {})

    with pytest.raises(Interrupted), job.stage("ask") as stage:
        stage.rows("answers.jsonl", ITEMS, answer)
    assert files.read_json_lines(tmp_path / "stages" / "ask" / "answers.jsonl") == [{"item": "a"}]


# --- directories ----------------------------------------------------------------------------------------------------


def test_privacy_json_is_never_missing(tmp_path: Path) -> None:
    open_job(tmp_path)
    assert files.read_json(tmp_path / "privacy.json") == {"mechanism": "none", "trains": False}


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
