"""Sweeps on a real SLURM without an accounting database: a test for each fault, what is expected is asserted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.pages import commands
from support.runs import outcome, write_messages
from support.slurm import Cluster
from support.sweeps import Place, wait_until

pytestmark = [pytest.mark.medium, pytest.mark.slurm]

SLURM = "hydra/launcher=privlm_slurm"
SLOWLY = ("task.pace=0.5", "task.num_steps=30")
FOR_LONG = ("task.pace=0.5", "task.num_steps=500")


@pytest.fixture
def place(cluster, tmp_path) -> Place:
    return on(cluster, tmp_path)


def on(cluster: Cluster, folder: Path) -> Place:
    return Place(folder, {"SLURM_CONF": cluster.env["SLURM_CONF"]})


def job_of(place: Place) -> str:
    """The id of the last array that the one sweep has submitted."""
    (sweep,) = (place.folder / "runs" / "sweeps").glob("*/sweep.json")
    return json.loads(sweep.read_text())["batches"][-1]["job"]


def steps_once(place: Place) -> bool:
    """Whether each step of each run was taken, and none twice."""
    steps = {line: number for line, number in place.on_record().items() if "step" in line}
    return bool(steps) and set(steps.values()) == {1}


def is_at_work(place: Place, seed: int = 0, step: int = 1) -> bool:
    return place.on_record()[f"{seed} step {step}"] > 0


def all_done(place: Place) -> bool:
    return set(place.states().values()) == {"done"}


def test_an_array_of_three(place, cluster):
    done = place.privlm(*place.sweep("seed=0,1,2", SLURM))
    assert place.states() == dict.fromkeys("012", "done")
    assert place.begins() == dict.fromkeys("012", 1)
    assert "submitted 3 runs as job" in done.stderr
    assert {entry["ArrayTaskId"] for entry in cluster.show(job_of(place))} == {"0", "1", "2"}
    again = place.privlm(*place.sweep("seed=0,1,2", SLURM))
    assert "submitted" not in again.stderr


def test_what_has_failed_is_named_and_resume_submits_what_is_missing(place, cluster):
    done = place.privlm(*place.sweep("seed=0,1,2", SLURM, "task.falls={seed0: error, seed1: kill}"), status=1)
    assert "it falls once" in done.stdout
    assert "its job is gone" in done.stdout  # as where the kernel kills for memory: the run could say nothing
    assert place.states() == {"0": "failed", "1": "died", "2": "done"}
    place.privlm("sweep", "--resume", "pacing")
    assert place.begins() == {"0": 2, "1": 2, "2": 1}
    assert all_done(place)
    assert {entry["ArrayTaskId"] for entry in cluster.show(job_of(place))} == {"0", "1"}


def test_detached_it_returns_and_the_jobs_are_seen(place, cluster):
    place.privlm(*place.sweep("seed=0,1", SLURM, *FOR_LONG, "--detach"))
    assert cluster.state(job_of(place)) in ("PENDING", "CONFIGURING", "RUNNING")
    wait_until(lambda: is_at_work(place))
    assert place.states()["0"] == "running"
    submitted = job_of(place)
    place.privlm(*place.sweep("seed=0,1", SLURM, *FOR_LONG, "--detach"))  # they are there already
    assert job_of(place) == submitted
    place.privlm("cancel", "pacing")
    assert place.states() == dict.fromkeys("01", "interrupted")
    assert cluster.run("squeue", "--noheader", f"--jobs={submitted}").strip() == ""


def test_warned_by_usr2_it_saves_and_is_queued_again(place, cluster):
    place.privlm(*place.sweep("seed=0", SLURM, *SLOWLY, "--detach"))
    wait_until(lambda: is_at_work(place))
    cluster.run("scancel", "--signal=USR2", job_of(place))
    wait_until(lambda: place.states()["0"] == "pending")
    cluster.start_now(job_of(place))
    wait_until(lambda: all_done(place))
    assert steps_once(place)
    assert json.loads((place.directory(0) / "status.json").read_text())["restarts"] == 1


def test_preempted_by_another_partition_it_resumes(place, cluster):
    place.privlm(*place.sweep("seed=0", SLURM, *SLOWLY, "hydra.launcher.additional_parameters={exclusive: true}",
                              "hydra.launcher.nodes=1", "--detach"))  # fmt: skip
    wait_until(lambda: is_at_work(place))
    urgent = cluster.submit("sleep 3", "--partition=urgent", "--exclusive", "--nodes=2")
    wait_until(lambda: place.states()["0"] == "pending")
    cluster.wait_for(urgent, "COMPLETED")
    cluster.start_now(job_of(place))
    wait_until(lambda: all_done(place))
    assert steps_once(place)


@pytest.mark.parametrize("how", ["scancel", "kill -9"])
def test_a_job_that_is_ended_from_outside_ends_the_sweep(place, cluster, how):
    sweep = place.start(*place.sweep("seed=0,1", SLURM, "task.pace=0.1", "task.falls={seed0: hang}"))
    wait_until(lambda: is_at_work(place))
    if how == "scancel":
        cluster.run("scancel", f"{job_of(place)}_0")
    else:
        os.kill(json.loads((place.directory(0) / "status.json").read_text())["pid"], signal.SIGKILL)
    output, errors = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, errors
    assert place.states()["1"] == "done"
    assert place.states()["0"] in ("died", "interrupted")
    assert "what is not done" in output


def test_where_slurm_refuses_no_run_is_left_queued(place):
    for wrong, said in (("partition=nowhere", "invalid partition"), ("constraint=none_such", "Invalid feature")):
        done = place.privlm(*place.sweep("seed=0,1", SLURM, f"hydra.launcher.{wrong}"), status=2)
        assert said in done.stderr
        assert not list((place.folder / "runs").glob("pacing/seed*"))


@pytest.mark.parametrize("fault", ["no sbatch", "no slurm.conf", "no controller"])
def test_where_there_is_no_slurm_nothing_is_written(cluster, tmp_path, fault):
    conf = Path(cluster.env["SLURM_CONF"])
    other = tmp_path / "slurm.conf"
    other.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", conf.read_text()))
    environ = {
        "no sbatch": {"PATH": str(tmp_path), "SLURM_CONF": str(conf)},
        "no slurm.conf": {"SLURM_CONF": str(tmp_path / "nowhere")},
        "no controller": {"SLURM_CONF": str(other)},
    }[fault]
    done = Place(tmp_path, environ).privlm(*place_words(tmp_path), status=3)
    assert "SLURM" in done.stderr or "sbatch" in done.stderr
    assert not (tmp_path / "runs").exists()


def place_words(folder: Path) -> list[str]:
    return Place(folder, {}).sweep("seed=0", SLURM)


def test_processes_that_do_not_fit_the_nodes_are_refused(place):
    done = place.privlm(*place.sweep("seed=0", SLURM, "hydra.launcher.nodes=2"), status=2)
    assert "hydra.launcher.nodes=2 does not divide trainer.processes=1" in done.stderr


def test_a_directory_that_is_gone_is_named(place, cluster):
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        place.privlm(*place.sweep("seed=0,1", SLURM, "--detach"))
        for path in sorted(place.directory(0).rglob("*"), reverse=True):
            path.unlink()
        place.directory(0).rmdir()
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    wait_until(lambda: place.states()["1"] == "done")
    wait_until(lambda: "its directory is gone" in place.status()["0"]["reason"])
    place.privlm("sweep", "--resume", "pacing", status=1)
    place.privlm(*place.sweep("seed=0,1", SLURM))
    assert place.begins() == {"0": 1, "1": 1}


@pytest.mark.parametrize("moment", range(2))
def test_the_submitting_process_killed_at_any_moment(place, moment):
    killed_anywhere(place, random.Random(moment).uniform(0.5, 4))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(2, 12))
def test_the_submitting_process_killed_at_ten_more_moments(place, moment):
    killed_anywhere(place, random.Random(moment).uniform(0.5, 6))


def killed_anywhere(place: Place, delay: float) -> None:
    words = place.sweep("seed=0,1,2", SLURM)
    sweep = place.start(*words)
    time.sleep(delay)
    sweep.kill()
    sweep.communicate()
    place.privlm(*words)
    assert all_done(place)
    assert place.begins() == dict.fromkeys("012", 1)


@pytest.mark.slow
def test_eight_equal_sweeps_at_once(place):
    sweeps = [place.start(*place.sweep("seed=0,1", SLURM)) for _ in range(8)]
    ended = [(sweep.communicate(), sweep.returncode) for sweep in sweeps]
    assert [status for _, status in ended] == [0] * 8, ended
    assert place.begins() == {"0": 1, "1": 1}


@pytest.mark.slow
def test_where_its_time_is_up_it_is_queued_again_and_resumed(place, cluster):
    launcher = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=45")
    place.privlm(*place.sweep("seed=0", SLURM, *launcher, "task.pace=1", "task.num_steps=60", "--detach"))
    while not all_done(place):  # SLURM looks at the clock every 30 seconds
        wait_until(lambda: all_done(place) or cluster.show(job_of(place))[0]["Reason"] == "BeginTime")
        if not all_done(place):
            cluster.start_now(job_of(place))
            cluster.wait_for(job_of(place), "RUNNING")
    assert steps_once(place)
    assert json.loads((place.directory(0) / "status.json").read_text())["timeouts"] >= 1


@pytest.mark.slow
def test_where_its_time_is_up_too_often_it_ends_and_says_so(place, cluster):
    launcher = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=50", "hydra.launcher.max_num_timeout=0")
    done = place.privlm(*place.sweep("seed=0", SLURM, *launcher, "task.pace=1", "task.num_steps=90"), status=1)
    assert "its time was up 1 times (hydra.launcher.timeout_min=1, max_num_timeout=0)" in done.stdout


@pytest.mark.slow
def test_the_controller_is_killed_and_comes_back(tmp_path):
    with Cluster() as cluster:
        place = on(cluster, tmp_path)
        sweep = place.start(*place.sweep("seed=0,1", SLURM, *SLOWLY))
        wait_until(lambda: is_at_work(place))
        cluster.kill_daemon("slurmctld")
        time.sleep(8)
        told = place.privlm("status", "pacing").stdout  # by what the runs say of themselves
        assert "what the runs say of themselves" in told
        assert "running" in told or "done" in told
        cluster.restart()
        errors = sweep.communicate(timeout=120)[1]
        assert sweep.returncode == 0, errors
        assert "SLURM does not answer" in errors
        assert place.begins() == {"0": 1, "1": 1}


@pytest.mark.slow
def test_a_node_is_lost(tmp_path):
    with Cluster() as cluster:
        place = on(cluster, tmp_path)
        words = place.sweep("seed=0,1", SLURM, *SLOWLY, "hydra.launcher.additional_parameters={exclusive: true}")
        sweep = place.start(*words)
        wait_until(lambda: is_at_work(place, 0) and is_at_work(place, 1))
        cluster.kill_daemon("slurmd.n2")
        (lost,) = [seed for seed in (0, 1) if "n2" in cluster.show(f"{job_of(place)}_{seed}")[0]["NodeList"]]
        os.kill(json.loads((place.directory(lost) / "status.json").read_text())["pid"], signal.SIGKILL)
        cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")
        with contextlib.suppress(AssertionError):  # it may be at work again
            cluster.start_now(f"{job_of(place)}_{lost}")
        errors = sweep.communicate(timeout=200)[1]
        assert sweep.returncode == 0, errors
        assert all_done(place)
        cluster.restart()


@pytest.mark.slow
def test_status_is_right_after_slurm_has_forgotten_the_job(tmp_path):
    with Cluster(min_job_age=2) as cluster:
        place = on(cluster, tmp_path)
        place.privlm(*place.sweep("seed=0,1", SLURM, "task.falls={seed1: error}"), status=1)
        cluster.wait_for(job_of(place), "GONE")
        assert place.states() == {"0": "done", "1": "failed"}
        place.privlm("sweep", "--resume", "pacing")
        assert place.begins() == {"0": 1, "1": 2}


@pytest.mark.slow
def test_the_commands_of_the_guide(place):
    for words in (found := commands("run on SLURM")):
        place.privlm(*words)
    assert len(found) >= 3
    (sweep,) = (place.folder / "runs" / "sweeps").iterdir()
    told = json.loads(place.privlm("status", sweep.name, "--json").stdout)
    assert [run["state"] for run in told["runs"]] == ["done"] * 3


@pytest.fixture
def training(place):
    messages = write_messages(place.folder / "messages.txt")
    return [
        "sweep", "task=ewtune", "model=tiny", "adapter=head", f"data.path={messages}", "privacy.epsilon=null",
        "privacy.noise_multiplier=1.0", "privacy.delta=1e-3", "trainer.batch_size=16", "trainer.evaluate_every=0",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_are_one_world(place, training):
    words = [*training, "trainer.steps=4", "trainer=ddp", "trainer.processes=2", "seed=0", SLURM]
    place.privlm(*words, "hydra.launcher.nodes=2")
    (run,) = (place.folder / "runs" / "ewtune").iterdir()
    assert "world" in (run / "run.log").read_text() or outcome(run)["steps"] == 4
    jobs = subprocess.run(
        ["scontrol", "-o", "show", "job"], env=os.environ | place.environ, capture_output=True, text=True, check=True
    ).stdout
    assert "NumNodes=2" in jobs


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["reproducible", "secure"])
def test_a_private_run_preempted_twice_is_that_of_a_whole_one(place, cluster, training, rng):
    words = [*training, "trainer.steps=400", "trainer.checkpoint_every=0", f"privacy.rng={rng}", "seed=0"]
    place.privlm(*words, "runs=whole")
    place.privlm(*words, SLURM, "--detach")

    def preempt(num_releases: int) -> None:
        ledger = Path("runs/ewtune")
        wait_until(lambda: num_lines(place.folder / ledger) >= num_releases)
        cluster.run("scancel", "--signal=USR2", job_of_training(place))
        wait_until(lambda: cluster.state(job_of_training(place)) == "PENDING")
        cluster.start_now(job_of_training(place))

    preempt(50)
    preempt(200)
    (run,) = (place.folder / "runs" / "ewtune").iterdir()
    wait_until(lambda: json.loads((run / "status.json").read_text())["state"] == "done")
    (whole,) = (place.folder / "whole" / "ewtune").iterdir()
    assert json.loads((run / "status.json").read_text())["restarts"] == 2
    if rng == "reproducible":
        assert outcome(run) == outcome(whole)
    else:
        assert outcome(run)["epsilon"] >= outcome(whole)["epsilon"]


def num_lines(folder: Path) -> int:
    found = list(folder.glob("*/privacy_ledger.jsonl"))
    return found[0].read_bytes().count(b"\n") if found else 0


def job_of_training(place: Place) -> str:
    (sweep,) = (place.folder / "runs" / "sweeps").glob("ewtune-*/sweep.json")
    return json.loads(sweep.read_text())["batches"][-1]["job"]
