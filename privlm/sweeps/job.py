"""`python -m privlm.sweeps.job BATCH.json`: what a job of SLURM does, one element of an array, one task a rank.

It takes up its run directory as `python -m privlm.launch RUN_DIR` does. What SLURM adds: the place in the world, the
warning that the time is up, and a job that is queued again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.time()
MARGIN = 60.0
"""Seconds by which a job may seem shorter than it was: until this process began."""
REQUEUE_SECONDS = 60.0
warnings: list[int] = []
"""Signals that came before the run listened."""


def main(argv: list[str]) -> int:
    """Works on the run that the element of the array stands for; its exit status."""
    signal.signal(signal.SIGUSR2, lambda signum, frame: warnings.append(signum))
    batch = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    directory = Path(batch["runs"][int(os.environ["SLURM_ARRAY_TASK_ID"])])
    _join_world()
    if not directory.is_dir():
        print(f"privlm: {socket.gethostname()} does not see {directory}: runs=FOLDER must be on a shared disk")
        return 2
    status = _work(directory, batch)
    if _was_warned(directory):
        if int(os.environ["SLURM_PROCID"]) == 0:
            _queue_again(directory, batch)
        else:
            time.sleep(REQUEUE_SECONDS)  # a rank that leaves ends the others, and rank 0 has something to do
    return status


def _work(directory: Path, batch: dict[str, Any]) -> int:
    from privlm import launch
    from privlm.errors import PrivLMError
    from privlm.masking import mask_text

    if warnings:
        return 128 + signal.SIGTERM
    try:
        return launch.take_up(directory, allow_changed_code=batch["allow_changed_code"], waits=True).status
    except PrivLMError as error:
        print(f"privlm: {mask_text(str(error))}", file=sys.stderr, flush=True)
        return error.exit_code


def _was_warned(directory: Path) -> bool:
    """Whether the run stands as SIGUSR2 has left it."""
    from privlm import files

    status = files.read_intact_json(directory / "status.json") or {}
    return status.get("state") != "done" and (bool(warnings) or status.get("reason") == signal.Signals.SIGUSR2.name)


def _queue_again(directory: Path, batch: dict[str, Any]) -> None:
    """Unless its time was up too often: a run that never gets on would be queued for ever."""
    from privlm import rundir

    is_timeout = time.time() - STARTED > 60 * batch["timeout_min"] - batch["signal_delay_s"] - MARGIN
    with rundir.locked(directory):
        num_timeouts = rundir.count(directory, "timeouts") if is_timeout else 0
        if num_timeouts > batch["max_num_timeout"]:
            rundir.set_state(
                directory,
                "interrupted",
                f"its time was up {num_timeouts} times (hydra.launcher.timeout_min={batch['timeout_min']}, "
                f"max_num_timeout={batch['max_num_timeout']}); privlm sweep --resume goes on",
            )
            return
    job = os.environ["SLURM_ARRAY_JOB_ID"] + "_" + os.environ["SLURM_ARRAY_TASK_ID"]
    print(f"privlm: queueing {job} again, {'its time is up' if is_timeout else 'it is preempted'}", flush=True)
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=REQUEUE_SECONDS)
    time.sleep(REQUEUE_SECONDS)  # SLURM ends this process: to leave by itself would count as the end of the job


def _join_world() -> None:
    """Tells torch the ranks of the job, where there are several."""
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1:
        return
    from submitit.helpers import TorchDistributedEnvironment

    TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError:  # nodes that only SLURM knows by their names
        os.environ["MASTER_ADDR"] = _address_of(os.environ["MASTER_ADDR"])


def _address_of(node: str) -> str:
    told = subprocess.run(["scontrol", "-o", "show", "node", node], capture_output=True, text=True, check=True).stdout
    return next(word.removeprefix("NodeAddr=") for word in told.split() if word.startswith("NodeAddr="))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
