"""Which GPUs of this machine a worker of a sweep sees; without this all of them would take the first. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them; empty where there is none."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return [name for name in (part.strip() for part in given.split(",")) if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    # By their identity: CUDA counts them by speed, nvidia-smi by their place on the bus.
    asked = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def shares(num_workers: int, gpus: Sequence[str]) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker: its part of the GPUs, or one of them that several share.

    None leaves the environment as it is: where one worker has them all, or there are none.
    """
    if num_workers == 1 or not gpus:
        return [None] * num_workers
    if num_workers > len(gpus):
        return [gpus[worker % len(gpus)] for worker in range(num_workers)]
    ends = [worker * len(gpus) // num_workers for worker in range(num_workers + 1)]
    return [",".join(gpus[first:last]) for first, last in pairwise(ends)]
