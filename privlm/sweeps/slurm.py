"""Runs of a sweep as arrays of SLURM jobs.

submitit writes the batch script and hands it to sbatch. A job gets the names of its run directories, not a pickled
function: it cannot run other code than it was queued by, and needs nothing of the process that has submitted it. What
has not ended is asked of squeue, by the name of the array: no accounting database is needed, and an array whose
submission was killed before its id was written is found all the same.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from privlm import files
from privlm.errors import ServiceError, UsageError
from privlm.schema import require_packages
from privlm.sweeps.folder import JOBS, Batch, Member, Sweep
from privlm.sweeps.schema import SlurmConfig

OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
"""States of a job that will not run again. Whatever else squeue says is of one that waits, runs, or is queued again:
to take such a one for ended would run it twice.
"""
ANSWER_SECONDS = 60
MAX_ARRAY = 1000
"""Elements of an array (SLURM's MaxArraySize, 1001 unless a cluster says otherwise)."""
NO_CONTROLLER = re.compile(r"unable to contact slurm controller|connection refused|socket timed out|connect failure|"
                           r"could not establish|resolve hostname|no such file", re.IGNORECASE)  # fmt: skip


def require(launcher: SlurmConfig, num_processes: Sequence[int]) -> None:
    """Raises UsageError for settings that cannot be and for a missing extra, ServiceError where there is no SLURM."""
    for processes in set(num_processes):
        if processes % launcher.nodes:
            raise UsageError(
                f"hydra.launcher.nodes={launcher.nodes} does not divide trainer.processes={processes}: there is one "
                "task a rank, and each node has equally many"
            )
    if len(set(num_processes)) > 1:
        raise UsageError("the runs of a sweep on SLURM need one number of trainer.processes: give each its own sweep")
    require_packages("hydra/launcher=privlm_slurm", "submitit", extra="slurm")
    if shutil.which("sbatch") is None:
        raise ServiceError(
            "no sbatch on PATH: start the sweep on a login node of the cluster (module load slurm), or try it on a "
            'cluster of your own: eval "$(scripts/slurm_dev.sh env)"'
        )
    if (conf := os.environ.get("SLURM_CONF")) is not None and not Path(conf).is_file():
        raise ServiceError(f"SLURM_CONF={conf} is no file: unset it, or name the slurm.conf of the cluster")
    _ask("scontrol", "ping")


def submit(sweep: Sweep, members: Sequence[Member], *, num_processes: int) -> Batch:
    """Hands the runs to SLURM as one array; the sweep remembers it before and after.

    Raises ServiceError where SLURM does not answer, UsageError with sbatch's own words where it refuses.
    """
    launcher = sweep.launcher
    assert launcher is not None
    batch = Batch(f"privlm-{sweep.folder.name.rpartition('-')[2]}-{len(sweep.batches)}", [one.name for one in members])
    folder = sweep.folder / JOBS
    folder.mkdir(exist_ok=True)
    work = {
        "runs": [str(one.directory) for one in members],
        "allow_changed_code": sweep.settings.allow_changed_code,
        "timeout_min": launcher.timeout_min,
        "signal_delay_s": launcher.signal_delay_s,
        "max_num_timeout": launcher.max_num_timeout,
    }
    files.write_json(folder / f"{batch.name}.json", work)
    sweep.batches.append(batch)
    sweep.write()
    try:
        batch.job = _sbatch(folder, batch, launcher, num_processes // launcher.nodes)
    except (ServiceError, UsageError):
        sweep.batches.remove(batch)
        sweep.write()
        raise
    sweep.write()
    return batch


def _sbatch(folder: Path, batch: Batch, launcher: SlurmConfig, tasks_per_node: int) -> str:
    """The id of the array."""
    import submitit

    executor = submitit.SlurmExecutor(folder=folder)
    given: dict[str, Any] = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "gpus_per_node": launcher.gpus_per_node,
        "cpus_per_task": launcher.cpus_per_task,
        "mem": None if launcher.mem_gb is None else f"{round(launcher.mem_gb * 1024)}MB",
        "setup": launcher.setup,
    }
    # requeue: a cluster may have it off by default, and a run that is preempted could not come back.
    additional = {"requeue": True} | dict(launcher.additional_parameters)
    executor.update_parameters(
        **{name: value for name, value in given.items() if value is not None},
        job_name=batch.name,
        time=launcher.timeout_min,
        nodes=launcher.nodes,
        ntasks_per_node=tasks_per_node,
        array_parallelism=launcher.array_parallelism,
        signal_delay_s=launcher.signal_delay_s,
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],  # a rank that has failed would leave the others waiting for it
        additional_parameters=additional,
    )
    executor.parameters["map_count"] = len(batch.runs)
    command = shlex.join([sys.executable, "-u", "-m", "privlm.sweeps.job", str(folder / f"{batch.name}.json")])
    script = folder / f"{batch.name}.sh"
    files.write_text(script, executor._make_submission_file_text(command, batch.name))
    answer = _ask("sbatch", "--parsable", str(script))
    return answer.split(";")[0].strip()


def alive(sweep: Sweep) -> dict[str, str]:
    """Name of a run -> what SLURM says of its job (`PENDING (Priority)`), of jobs that are not over.

    Raises ServiceError where SLURM does not answer.
    """
    found: dict[str, str] = {}
    for batch in sweep.batches:
        for index, state, reason in _array(batch.name):
            if state not in OVER and index < len(batch.runs):
                found[batch.runs[index]] = state if reason in ("None", "") else f"{state} ({reason})"
    return found


def _array(name: str) -> Iterator[tuple[int, str, str]]:
    """(index, state, reason) of each element of an array that SLURM still knows."""
    listed = _ask("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%K|%T|%r")
    for line in listed.splitlines():
        index, state, reason = line.strip().split("|", 2)
        if index.isdecimal():
            yield int(index), state, reason


def cancel(sweep: Sweep) -> None:
    """What waits goes; what runs is told to save its state and stop."""
    for batch in sweep.batches:
        _ask("scancel", f"--name={batch.name}", "--state=PENDING")
        _ask("scancel", f"--name={batch.name}", "--signal=TERM")


def kill(sweep: Sweep) -> None:
    """Ends what is left."""
    for batch in sweep.batches:
        _ask("scancel", f"--name={batch.name}")


def log_of(sweep: Sweep, member: Member) -> str:
    """Where SLURM has put what the last job of a run printed; '' where it is not known."""
    for batch in reversed(sweep.batches):
        if member.name in batch.runs and batch.job is not None:
            found = sorted((sweep.folder / JOBS).glob(f"{batch.job}_{batch.runs.index(member.name)}_*_log.out"))
            return str(found[0]) if found else ""
    return ""


def _ask(*command: str) -> str:
    """What a command of SLURM prints. Raises ServiceError where SLURM does not answer, UsageError where it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except FileNotFoundError as error:
        raise ServiceError(f"no {command[0]} on PATH: load the module of SLURM") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{command[0]} did not answer within {ANSWER_SECONDS} s: is slurmctld up?") from error
    said = (done.stderr or done.stdout).strip()
    if command[:2] == ("scontrol", "ping") and ("is DOWN" in done.stdout or done.returncode != 0):
        raise ServiceError(f"SLURM does not answer: {said.splitlines()[0] if said else 'scontrol ping failed'}")
    if done.returncode != 0:
        if NO_CONTROLLER.search(said):
            raise ServiceError(f"SLURM does not answer: {said.splitlines()[-1]}")
        raise UsageError(f"{command[0]} refuses: {said}")
    return done.stdout
