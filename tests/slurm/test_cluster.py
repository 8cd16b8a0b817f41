"""The SLURM that scripts/slurm_dev.sh brings up: real jobs run on it, it survives kill -9, it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.slurm import DAEMONS, SCRIPT, Cluster, processes_of

pytestmark = [pytest.mark.slurm, pytest.mark.medium]

WHOLE = ("--nodes=2", "--exclusive")


def test_one_job_runs_on_both_nodes(cluster):
    named = cluster.run("srun", "-N2", "-n4", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(named.split()) == ["n1", "n1", "n2", "n2"]


def test_a_submitted_job_runs_to_its_end(cluster):
    job = cluster.submit("echo here; exit 3")
    assert cluster.wait_for(job, "COMPLETED", "FAILED") == "FAILED"
    assert cluster.show(job)[0]["ExitCode"] == "3:0"
    assert cluster.output(job) == "here\n"


def test_a_job_of_urgent_sends_one_of_main_its_signal_and_takes_its_place(cluster):
    patient = "trap 'echo told; scontrol requeue $SLURM_JOB_ID' USR2; echo begun; while sleep 0.1; do :; done"
    main = cluster.submit(patient, *WHOLE, "--signal=B:USR2@60", "--open-mode=append")
    wait_until(lambda: "begun" in cluster.output(main))
    urgent = cluster.submit("true", *WHOLE, "--partition=urgent")
    cluster.wait_for(urgent, "COMPLETED")
    (preempted,) = cluster.show(main)
    assert "told" in cluster.output(main)
    assert (preempted["JobState"], preempted["Reason"], preempted["Restarts"]) == ("PENDING", "BeginTime", "1")
    cluster.start_now(main)
    cluster.wait_for(main, "RUNNING")
    cluster.run("scancel", main)
    cluster.wait_for(main, "CANCELLED")


def test_a_second_start_changes_nothing(cluster):
    def what_is_up():
        return [cluster.pid(name) for name in DAEMONS], (cluster.folder / "slurm.conf").read_text()

    before = what_is_up()
    cluster.restart()
    assert what_is_up() == before


def test_env_points_a_shell_to_the_cluster(cluster):
    shell = cluster.script("env").stdout + "sinfo --noheader --format=%P"
    shown = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["main*", "urgent"]


def test_a_finished_job_is_forgotten_at_the_age_that_was_asked_for():
    with Cluster(min_job_age=2) as hasty:
        job = hasty.submit("true")
        hasty.wait_for(job, "COMPLETED")
        hasty.wait_for(job, "GONE")


def test_two_clusters_know_nothing_of_each_other(cluster):
    job = cluster.submit("sleep 300")
    cluster.wait_for(job, "RUNNING")
    with Cluster() as other:
        assert other.run("squeue", "--noheader") == ""
        other.run("srun", "-N2", "true")
    assert cluster.state(job) == "RUNNING"
    cluster.run("scancel", job)


def test_killed_daemons_come_back_and_a_stranger_with_the_pid_of_one_is_spared(tmp_path):
    shutil.copy("/bin/sleep", tmp_path / "slurmd")
    with subprocess.Popen([tmp_path / "slurmd", "30"]) as stranger, Cluster() as cluster:
        for name in DAEMONS:
            cluster.kill_daemon(name)
        (cluster.folder / "slurmd.n1.pid").write_text(f"{stranger.pid}\n")
        assert cluster.script("status").returncode == 3
        cluster.restart()
        assert cluster.script("status").returncode == 0
        cluster.run("srun", "--nodes=2", "true")

        cluster.kill_daemon("slurmd.n1")
        (cluster.folder / "slurmd.n1.pid").write_text(f"{stranger.pid}\n")
        assert cluster.script("stop").returncode == 0
        assert stranger.poll() is None
        stranger.kill()


def test_stop_gives_jobs_their_time_to_end_and_leaves_no_process():
    with Cluster() as cluster:
        polite = cluster.submit("trap 'sleep 1; echo saved; exit' TERM; echo begun; sleep 300 & wait")
        deaf = cluster.submit("trap '' TERM; echo begun; sleep 300 & wait; sleep 300")
        array = cluster.submit("srun sleep 300", "--array=0-9")
        wait_until(lambda: cluster.output(polite) and cluster.output(deaf) and cluster.state(f"{array}_0") == "RUNNING")
        assert_stop_leaves_nothing(cluster)
        assert cluster.output(polite).endswith("saved\n")


def test_stop_leaves_no_process_of_jobs_whose_daemons_were_killed():
    with Cluster() as cluster:
        array = cluster.submit("srun sleep 300", "--array=0-9")
        wait_until(lambda: any(command.endswith("/sleep 300") for command in cluster.processes().values()))
        for name in DAEMONS:
            cluster.kill_daemon(name)
        assert cluster.processes()
        assert_stop_leaves_nothing(cluster)
        cluster.restart()
        assert cluster.state(array) in ("CANCELLED", "GONE")


def assert_stop_leaves_nothing(cluster):
    stopped = cluster.script("stop")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert cluster.processes() == {}
    assert list(cluster.folder.glob("*.pid")) == []


def test_stop_ends_what_has_left_its_job_and_spares_what_only_knows_the_cluster():
    with Cluster() as cluster, subprocess.Popen(["sleep", "30"], env=cluster.env) as bystander:
        job = cluster.submit("setsid sleep 300 & sleep 0.5")
        cluster.wait_for(job, "COMPLETED")
        assert "sleep 300" in cluster.processes().values()
        assert cluster.script("stop").returncode == 0
        assert list(cluster.processes()) == [bystander.pid]
        bystander.kill()


def test_a_job_cannot_stop_its_cluster(cluster):
    job = cluster.submit(f"PRIVLM_SLURM_DIR={cluster.folder} bash {SCRIPT} stop; echo status $?")
    cluster.wait_for(job, "COMPLETED")
    assert "this shell belongs to a job\nstatus 2" in cluster.output(job)


def test_a_cluster_ends_with_tests_that_are_killed():
    code = """
        import os, signal
        from support.slurm import Cluster
        cluster = Cluster().__enter__()
        cluster.submit("sleep 300")
        print(cluster.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    wait_until(lambda: not folder.exists())
    assert processes_of(folder) == {}


def test_a_daemon_that_does_not_come_up_is_named_with_the_end_of_its_log():
    with Cluster() as cluster:
        cluster.kill_daemon("slurmd.n2")
        port = int(cluster.run("scontrol", "show", "config").split("SlurmctldPort")[1].split()[1])
        with socket.create_server(("127.0.0.1", port + 2)):
            failed = cluster.script("start")
    assert failed.returncode == 3
    assert "slurmd.n2 does not come up" in failed.stderr
    assert "Address already in use" in failed.stderr


@pytest.mark.parametrize(
    ("verb", "variables", "said"),
    [
        ("", {}, "usage:"),
        ("restart", {}, "usage:"),
        ("start", {"PRIVLM_SLURM_DIR": "/tmp/with space"}, "PRIVLM_SLURM_DIR=/tmp/with space: needs a path"),
        ("start", {"PRIVLM_SLURM_DIR": "/tmp/" + 70 * "a"}, "at most 70"),
        ("start", {"PRIVLM_SLURM_PORT": "65534"}, "PRIVLM_SLURM_PORT=65534: needs a number"),
        ("start", {"PRIVLM_SLURM_MIN_JOB_AGE": "soon"}, "PRIVLM_SLURM_MIN_JOB_AGE=soon: needs a number"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_status_2(short_path, verb, variables, said):
    refused = call(verb, **{"PRIVLM_SLURM_DIR": str(short_path / "new")} | variables)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (short_path / "new").exists()


def test_a_taken_port_is_refused(short_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1] - 2)
        refused = call("start", PRIVLM_SLURM_DIR=str(short_path), PRIVLM_SLURM_PORT=port)
    assert refused.returncode == 2
    assert f"PRIVLM_SLURM_PORT={port}: one of the three ports" in refused.stderr


def test_start_needs_root(tmp_path):
    refused = call("start", user=65534, group=65534, extra_groups=())
    assert (refused.returncode, refused.stderr) == (2, "slurm_dev.sh: start and stop need root\n")


def test_start_needs_apt_where_slurm_is_not_installed(tmp_path, short_path):
    for tool in ("realpath", "id", "mkdir", "flock"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    refused = call("start", PATH=str(tmp_path), PRIVLM_SLURM_DIR=str(short_path / "new"))
    assert refused.returncode == 2
    assert "there is no apt-get: this needs Debian" in refused.stderr


def call(verb, *, user=None, group=None, extra_groups=None, **variables):
    """The script through the input of bash: another user may not be able to read this checkout."""
    return subprocess.run(
        ["/bin/bash", "-s", *filter(None, [verb])], input=SCRIPT.read_text(), cwd="/", capture_output=True, text=True,
        check=False, env={"PATH": os.environ["PATH"]} | variables, user=user, group=group, extra_groups=extra_groups,
    )  # fmt: skip


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
