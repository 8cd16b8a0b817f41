import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from privlm.errors import UsageError
from privlm.report.store import find_run, find_runs, life_sign, read_run

pytestmark = pytest.mark.torch_free


def test_reads_a_finished_run(tmp_path, make_run):
    run = read_run(make_run(tmp_path, seed=3))
    assert run.finished
    assert (run.task, run.scale, run.seed) == ("ewtune", "small", 3)
    assert [(row.metric, row.value) for row in run.results] == [("accuracy", 0.976), ("f1", 0.904)]
    assert run.overrides == ["task=ewtune", "privacy.epsilon=3", "seed=3"]
    assert run.privacy["epsilon"] == 2.998
    assert not run.problems


def test_a_run_without_result_keeps_its_state(tmp_path, make_run):
    run = read_run(make_run(tmp_path, state="interrupted"))
    assert (run.state, run.finished, run.results) == ("interrupted", False, [])
    assert run.scale == "small"  # from its configuration


@pytest.mark.parametrize("name", ["result.json", "privacy.json", "env.json", "config.yaml"])
def test_a_truncated_file_is_reported_and_counts_as_absent(tmp_path, make_run, name):
    path = make_run(tmp_path)
    content = (path / name).read_text()
    (path / name).write_text("{" if name.endswith("yaml") else content[: len(content) // 2])
    run = read_run(path)
    assert not (run.privacy and run.env and run.config and run.result)
    assert [problem.split()[0] for problem in run.problems] == [name]


def test_a_newer_schema_is_refused_by_name(tmp_path, make_run):
    path = make_run(tmp_path, result={"schema": 2})
    with pytest.raises(UsageError, match=r"result\.json has schema 2.*update PrivLM"):
        read_run(path)
    store = find_runs(tmp_path)
    assert store.runs == []
    assert "schema 2" in store.skipped[0]


def test_an_unreadable_directory_is_skipped_and_counted(tmp_path, make_run, monkeypatch):
    make_run(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    store = find_runs(tmp_path)
    assert len(store.runs) == 1
    assert len(store.skipped) == 1
    assert "Permission denied" in store.skipped[0]


def test_links_and_loops_count_a_run_once(tmp_path, make_run):
    path = make_run(tmp_path)
    (path.parent / "again").symlink_to(path)
    (path.parent / "up").symlink_to(tmp_path)
    (path.parent / "itself").symlink_to(path.parent / "itself")
    assert len(find_runs(tmp_path).runs) == 1


def test_a_missing_folder_is_an_empty_store(tmp_path):
    assert find_runs(tmp_path / "nowhere").runs == []


def test_steps_redone_after_a_resume_count_once(tmp_path, make_run):
    path = make_run(tmp_path)
    row = {"stage": "train", "step": 160, "split": "test", "name": "accuracy", "value": "nan", "time": 1.0}
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps(row | {"client": 2, "value": 0.5}) + '\n{"stage": "tr')
    run = read_run(path)
    last = [point for point in run.metrics() if point.step == 160]
    assert len(last) == 2
    assert math.isnan(last[0].value)
    assert last[1].series == (("client", 2),)
    assert not run.problems


@pytest.mark.parametrize("length", [4, 8, 64])
def test_finds_a_run_by_the_beginning_of_its_hash(tmp_path, make_run, length):
    path = make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2)
    digest = read_run(path).run_hash
    assert find_run(digest[:length], tmp_path).path == path
    assert find_run(path.name, tmp_path).path == path
    assert find_run(str(path), tmp_path).path == path


def test_an_unknown_run_is_refused_with_the_nearest_names(tmp_path, make_run):
    path = make_run(tmp_path)
    with pytest.raises(UsageError, match=f"did you mean {path.name}"):
        find_run(path.name.replace("minilm", "minlim"), tmp_path)


def test_an_ambiguous_prefix_names_the_candidates(tmp_path, make_run):
    paths = [make_run(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(UsageError, match="names 2 runs") as caught:
        find_run("minilm", tmp_path)
    assert all(str(path) in str(caught.value) for path in paths)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a run directory"):
        read_run(tmp_path)


def test_a_run_that_claims_to_run_is_checked(tmp_path, make_run):
    silent = read_run(make_run(tmp_path, state="running", status={"host": "elsewhere"}))
    assert "no heartbeat" in life_sign(silent.status)
    gone = {**silent.status, "host": os.uname().nodename, "pid": 2**22 + 1}
    assert "process is gone" in life_sign(gone)
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken notice
    assert "process is gone" in life_sign(gone | {"pid": ended.pid})
    ended.wait()
    assert life_sign(silent.status | {"state": "done"}) == ""
