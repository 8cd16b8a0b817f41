"""Workers of this machine: what falls falls alone, no run is begun twice, and the same command finishes the rest."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import pytest
from support.sweeps import Place, descendants, is_alive, wait_until

from privlm import launch
from privlm.signals import StopFlag
from privlm.sweeps import local

pytestmark = [pytest.mark.medium, pytest.mark.torch_free]

SIX = "seed=0,1,2,3,4,5"


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path, {})


def test_what_falls_falls_alone_and_resume_takes_up_what_is_missing(place):
    words = place.sweep(SIX, "sweep.workers=3", "task.falls={seed1: error, seed2: kill}")
    done = place.privlm(*words, status=1)
    assert place.states() == {"0": "done", "1": "failed", "2": "failed", "3": "done", "4": "done", "5": "done"}
    for reason in ("RuntimeError: it falls once", "killed by SIGKILL"):
        assert reason in done.stdout
    assert "Traceback" in (place.directory(1) / "run.log").read_text()
    place.privlm("sweep", "--resume", "pacing")
    assert set(place.states().values()) == {"done"}
    assert place.begins() == {"0": 1, "1": 2, "2": 2, "3": 1, "4": 1, "5": 1}
    assert all(number == 1 for line, number in place.on_record().items() if "step" in line)  # steps are durable
    place.privlm(*words)
    assert sum(place.begins().values()) == 8


def test_as_many_runs_at_a_time_as_there_are_workers(place):
    place.privlm(*place.sweep("seed=0,1,2,3", "sweep.workers=2", "task.pace=0.1"))
    lines = place.record.read_text().splitlines()
    at_work: dict[str, bool] = {}
    most = 0
    for line in lines:
        seed = line.split()[0]
        at_work[seed] = not line.endswith("step 4")
        most = max(most, sum(at_work.values()))
    assert most == 2


def test_workers_share_the_gpus_among_them(tmp_path):
    place = Place(tmp_path, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"})
    place.privlm(*place.sweep("seed=0,1,2,3", "sweep.workers=2", "task.pace=0.1"))
    seen = [line.split()[2] for line in place.on_record().elements() if " sees " in line]
    assert len(seen) == 4
    assert set(seen) == {"GPU-a", "GPU-b,GPU-c"}


def test_a_failure_stops_the_others_where_that_is_asked_for(place):
    fall = ("task.falls={seed0: always}", "task.fall_at=0", "sweep.stop_on_failure=true")
    place.privlm(*place.sweep("seed=0,1,2", *fall), status=1)
    assert place.states() == {"0": "failed", "1": "queued", "2": "queued"}
    place.privlm("sweep", "--resume", "pacing", "sweep.stop_on_failure=false", status=1)
    assert place.states() == {"0": "failed", "1": "done", "2": "done"}


def test_eight_equal_sweeps_at_once_begin_each_run_once(place):
    sweeps = [place.start(*place.sweep("seed=0,1,2", "sweep.workers=2", "task.pace=0.2")) for _ in range(8)]
    ended = [(sweep.communicate(), sweep.returncode) for sweep in sweeps]
    assert [status for _, status in ended] == [0] * 8, ended
    assert place.begins() == {"0": 1, "1": 1, "2": 1}


@pytest.mark.parametrize("moment", range(2))
def test_killed_at_any_moment_nothing_is_left_and_the_same_command_finishes(place, moment):
    killed_anywhere(place, random.Random(moment).uniform(0.2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(2, 22))
def test_killed_at_twenty_more_moments(place, moment):
    killed_anywhere(place, random.Random(moment).uniform(0.2, 6))


def killed_anywhere(place: Place, delay: float) -> None:
    words = place.sweep("seed=0,1,2,3", "sweep.workers=2", "task.pace=0.2")
    sweep = place.start(*words)
    time.sleep(delay)
    children = descendants(sweep.pid)
    sweep.kill()
    sweep.communicate()
    wait_until(lambda: not any(map(is_alive, children)), 10)
    finished = {seed for seed in map(str, range(4)) if place.on_record()[f"{seed} step 4"]}
    before = place.begins()
    place.privlm(*words)
    assert set(place.states().values()) == {"done"}
    for seed in finished:  # its last step was durable; at most its result was not
        assert place.begins()[seed] <= before[seed] + 1
    assert all(number <= 2 for line, number in place.on_record().items() if "step" in line)


def test_interrupted_it_saves_and_goes_on(place):
    words = place.sweep("seed=0,1,2", "sweep.workers=2", "task.pace=0.3")
    sweep = place.start(*words)
    wait_until(lambda: place.on_record()["0 step 1"] > 0)
    sweep.send_signal(signal.SIGINT)
    errors = sweep.communicate()[1]
    assert sweep.returncode == 130, errors
    assert "--resume goes on" in errors
    assert set(place.states().values()) == {"interrupted", "queued"}
    place.privlm(*words)
    assert all(number == 1 for line, number in place.on_record().items() if "step" in line)


def test_detached_it_is_seen_and_cancelled_from_outside(place):
    done = place.privlm(*place.sweep("seed=0,1,2", "task.pace=0.5", "task.num_steps=40", "--detach"))
    assert "privlm status" in done.stdout
    wait_until(lambda: place.on_record()["0 step 0"] > 0)
    assert place.states() == {"0": "running", "1": "queued", "2": "queued"}
    assert "worked on by process" in place.privlm("status", "pacing").stdout
    place.privlm("cancel", "pacing")
    assert place.states() == dict.fromkeys("012", "interrupted")
    assert place.begins() == {"0": 1}
    place.privlm("sweep", "--resume", "pacing", "sweep.workers=3", "--detach")
    wait_until(lambda: set(place.states().values()) == {"done"})
    assert all(number == 1 for line, number in place.on_record().items() if "step" in line)


def test_a_run_that_another_process_works_on_is_waited_for(place):
    run = place.start("run", *place.sweep("seed=0", "task.pace=0.5")[1:])
    wait_until(lambda: place.on_record()["0 step 0"] > 0)
    place.privlm(*place.sweep("seed=0,1", "task.pace=0.5"))
    assert run.wait() == 0
    assert place.begins() == {"0": 1, "1": 1}


def test_a_run_whose_process_hangs_is_named(place):
    run = place.start("run", *place.sweep("seed=0", "task.pace=0.5")[1:])
    wait_until(lambda: place.on_record()["0 step 0"] > 0)
    run.send_signal(signal.SIGSTOP)
    try:
        status = place.directory(0) / "status.json"
        status.write_text(json.dumps(json.loads(status.read_text()) | {"heartbeat": time.time() - 1000}))
        done = place.privlm(*place.sweep("seed=0,1", "task.pace=0.5"), status=1)
        assert "no heartbeat for 1" in done.stdout
        assert place.states() == {"0": "running", "1": "done"}
    finally:
        run.kill()
        run.communicate()


def test_a_damaged_run_is_named_and_the_others_are_done(place):
    place.privlm(*place.sweep("seed=0,1", "task.falls={seed0: error}"), status=1)
    (place.directory(0) / "status.json").write_text("{")
    done = place.privlm(*place.sweep("seed=0,1", "task.falls={seed0: error}"), status=1)
    assert "damaged" in done.stdout
    assert "status.json" in done.stdout
    assert place.states() == {"0": "damaged", "1": "done"}


def test_other_code_than_queued_a_run_is_refused_unless_that_is_allowed(place):
    fall = ("task.falls={seed0: always}", "task.fall_at=0", "sweep.stop_on_failure=true")
    place.privlm(*place.sweep("seed=0,1", *fall), status=1)
    status = place.directory(1) / "status.json"
    other = {"commit": "0" * 40, "diff": None, "version": "0.0.1"}
    status.write_text(json.dumps(json.loads(status.read_text()) | {"code": other}))
    done = place.privlm("sweep", "--resume", "pacing", "sweep.stop_on_failure=false", status=1)
    assert "queued by other code (commit 0000000000)" in done.stdout
    assert "sweep.allow_changed_code=true" in done.stdout
    assert "1" not in place.begins()
    place.privlm("sweep", "--resume", "pacing", "sweep.allow_changed_code=true", status=1)
    assert place.states() == {"0": "failed", "1": "done"}


def test_a_queued_run_is_what_it_was_when_it_was_queued(place):
    """An edited YAML, and words of the environment, change nothing."""
    (place.folder / "mine").mkdir()
    yaml = place.folder / "mine" / "few.yaml"
    yaml.write_text("defaults: [config, _self_]\ntask: {num_steps: 3}\n")
    mine = ("-cd", "mine", "-cn", "few")
    fall = ("task.falls={seed0: always}", "task.fall_at=0", "sweep.stop_on_failure=true")
    place.privlm(*place.sweep("seed=0,1", *fall, *mine), status=1)
    yaml.write_text("defaults: [config, _self_]\ntask: {num_steps: 4}\n")
    place.privlm("sweep", "--resume", "pacing", "sweep.stop_on_failure=false", status=1)
    assert place.on_record()["1 step 2"] == 1
    assert place.on_record()["1 step 3"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed=0", "sweep.workers=0"), "sweep.workers must be at least 1"),
        (("seed=0", "sweep.workers=1,2"), "give each one value"),
        (("seed=0", "sweep.worker=2"), "did you mean 'sweep.workers'"),
        (("seed=0", "hydra.sweep.dir=x"), "runs=FOLDER"),
        (("seed=0", "hydra/launcher=joblib"), "sweep.workers=N"),
        (("seed=0", "hydra/sweeper=optuna"), "every combination"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(place, words, message):
    done = place.privlm(*place.sweep(*words), status=2)
    assert message in done.stderr
    assert not (place.folder / "runs").exists()


def test_wrong_names_are_refused(place):
    assert "names no sweep" in place.privlm("status", "nothing", status=2).stderr
    assert "names no sweep" in place.privlm("cancel", "nothing", status=2).stderr
    assert "names no sweep" in place.privlm("sweep", "--resume", "nothing", status=2).stderr
    assert "privlm sweep takes it" in place.privlm("run", "task=pacing", "sweep.workers=2", status=2).stderr
    place.privlm(*place.sweep("seed=0,1"))
    assert "sweep.KEY=VALUE" in place.privlm("sweep", "--resume", "pacing", "seed=3", status=2).stderr
    (sweep,) = (place.folder / "runs" / "sweeps").iterdir()
    (sweep / "sweep.json").write_text('{"schema"')
    assert "runs no run twice" in place.privlm("status", "pacing", status=2).stderr
    place.privlm(*place.sweep("seed=0,1"))
    assert place.begins() == {"0": 1, "1": 1}


def test_a_folder_that_cannot_be_written_is_named(place):
    if os.geteuid() == 0:
        (place.folder / "runs").write_text("a file")
    else:
        (place.folder / "runs").mkdir(mode=0o500)
    assert "set runs=FOLDER" in place.privlm(*place.sweep("seed=0,1"), status=2).stderr


def test_the_seconds_of_a_run_at_work_do_not_count_its_time_in_the_queue(place):
    place.privlm(*place.sweep("seed=0,1", "task.pace=2", "task.num_steps=30", "--detach"))
    try:
        wait_until(lambda: place.begins().get("0", 0) > 0)
        status = place.directory(0) / "status.json"
        early = json.loads(status.read_text())
        status.write_text(json.dumps(early | {"started": early["started"] - 5000}))  # when it was queued
        assert place.status()["0"]["seconds"] < 1000
    finally:
        place.privlm("cancel", "pacing")


def test_a_worker_hears_at_its_run_of_a_stop_that_came_before_it_listened(monkeypatch, tmp_path):
    def stopped_early(directory, allow_changed_code):
        os.kill(os.getpid(), signal.SIGTERM)
        with StopFlag().listening() as stop:
            return launch.Ended(directory, 143 if stop.signum == signal.SIGTERM else 0, skipped=False)

    monkeypatch.setattr(launch, "take_up", stopped_early)
    worker = multiprocessing.get_context("fork").Process(target=local._work, args=(tmp_path, None, False, None))
    worker.start()
    worker.join()
    assert worker.exitcode == 143
