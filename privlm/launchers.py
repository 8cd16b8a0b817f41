"""Outer launchers: the world that one has made for this process, or why none came through.

torchrun, DeepSpeed's launcher and `accelerate launch` on GPUs tell each process its place by RANK and WORLD_SIZE.
Others start the command as often as was asked for and tell it in words of their own: each process would then train
alone, in the same run directory. They are refused by the name of the variable, before anything is written.

Inside a SLURM job a process is one of several only where srun has started it: a batch script, a notebook and a shell
see the size of the job in SLURM_NTASKS, and are alone all the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from privlm.errors import UsageError

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Launcher:
    """Who starts several processes that do not know each other; rank and size: the variables that tell of them."""

    name: str
    rank: str
    size: str


LAUNCHERS = (
    Launcher("mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    Launcher("mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    Launcher("mpirun of MVAPICH", "MVP_COMM_WORLD_RANK", "MVP_COMM_WORLD_SIZE"),
    Launcher("horovodrun", "HOROVOD_RANK", "HOROVOD_SIZE"),
    Launcher("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    Launcher("flux run", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    Launcher("mpiexec of MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE"),
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    Launcher("a launcher of PMIx", "PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
)

NUM_PORTS = 2**16
MAX_DIGITS = 10  # of a number of processes, or a port

ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
"""Variable of `accelerate launch` -> the engine that it asks for, none of which trains here."""


def outer_world(environ: Variables | None = None) -> tuple[int, int] | None:
    """(rank, size) of this process in the world of an outer launcher, None where it was started alone.

    Raises UsageError, naming the variable, where a launcher has started several processes that are no world, or
    variables of a world do not fit each other.
    """
    environ = os.environ if environ is None else environ
    for variable, engine in ENGINES.items():
        if environ.get(variable, "").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"{variable}={environ[variable]}: accelerate launch asks for {engine}, which is not supported here; "
                "use trainer=single or trainer=ddp, started without it"
            )
    world = _world(environ)
    for launcher in LAUNCHERS:
        _require_one_world(launcher, environ, 1 if world is None else world[1])
    if world is None and _is_accelerate(environ) and accelerate_processes(environ) is None:
        raise UsageError(
            "MASTER_ADDR without RANK and WORLD_SIZE: accelerate launch was asked for several processes and has "
            f"started one. {_remedy(None)}"
        )
    return world


def accelerate_processes(environ: Variables | None = None) -> int | None:
    """How many processes `accelerate launch` was asked for, where it starts one in their place, as it does on CPUs.

    The number stands in no variable, only on the command line of the parent; None where it cannot be read.
    """
    environ = os.environ if environ is None else environ
    if "RANK" in environ or not _is_accelerate(environ):
        return None
    words = _parent_command()
    machines = _option(words, "num_machines")
    return _option(words, "num_processes") if machines in (None, 1) else None


def alone_in_slurm(environ: Variables | None = None) -> str:
    """A remark for a batch script that asked SLURM for several tasks and starts one process; "" elsewhere."""
    environ = os.environ if environ is None else environ
    tasks = environ.get("SLURM_NTASKS", "1")
    if "SLURM_PROCID" not in environ or "SLURM_STEP_NUM_TASKS" in environ or tasks == "1":
        return ""
    return f"SLURM_NTASKS={tasks}, and this is one process: trainer=ddp trainer.processes={tasks} would use them all"


def _is_accelerate(environ: Variables) -> bool:
    """Its launcher of one process sets the address of a world only where more were asked for."""
    return "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ


def _world(environ: Variables) -> tuple[int, int] | None:
    """By RANK and WORLD_SIZE; see outer_world."""
    given = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environ]
    if not given:
        return None
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name not in environ:
            named = other if other in environ else given[0]
            raise UsageError(
                f"{named}={environ[named]} without {name}: {name} is not set, so this process does not know its place "
                f"in the world; unset {named}, or set both. {_remedy(None)}"
            )
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if size < 1:
        raise UsageError(f"WORLD_SIZE={size}: a world has one process or more; unset RANK and WORLD_SIZE, or mend it")
    if rank >= size:
        raise UsageError(f"RANK={rank} and WORLD_SIZE={size} do not fit: ranks go from 0 to WORLD_SIZE - 1")
    _require_local(environ, rank, size)
    if size > 1 or "LOCAL_RANK" in environ:  # which has accelerate join the others, be there none
        _require_meeting(environ, rank, size)
    return rank, size


def _require_meeting(environ: Variables, rank: int, size: int) -> None:
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name, "").strip():
            raise UsageError(
                f"RANK={rank} and WORLD_SIZE={size}, but {name} is {'empty' if name in environ else 'not set'}: the "
                f"processes cannot meet. {_remedy(size)}"
            )
    if not 0 < (port := _number(environ, "MASTER_PORT")) < NUM_PORTS:
        raise UsageError(
            f"MASTER_PORT={port} is no port: the processes cannot meet; give one from 1 to {NUM_PORTS - 1}"
        )


def _require_local(environ: Variables, rank: int, size: int) -> None:
    if "LOCAL_RANK" not in environ:
        return
    local, limit = _number(environ, "LOCAL_RANK"), size
    if "LOCAL_WORLD_SIZE" in environ:
        limit = _number(environ, "LOCAL_WORLD_SIZE")
        if not 1 <= limit <= size:
            raise UsageError(f"LOCAL_WORLD_SIZE={limit} and WORLD_SIZE={size} do not fit: a machine has a part of them")
    if local >= limit or local > rank:
        raise UsageError(
            f"LOCAL_RANK={local} does not fit RANK={rank}, WORLD_SIZE={size}"
            + (f", LOCAL_WORLD_SIZE={limit}" if "LOCAL_WORLD_SIZE" in environ else "")
            + ": ranks on a machine go from 0, and none lies above RANK"
        )


def _require_one_world(launcher: Launcher, environ: Variables, size: int) -> None:
    """Raises UsageError where the launcher has started more processes than the world has."""
    if launcher.rank not in environ and launcher.size not in environ:
        return
    rank = _number(environ, launcher.rank) if launcher.rank in environ else 0
    variable = launcher.size
    if launcher.name == "srun":
        if launcher.rank not in environ:
            return  # a shell of salloc
        if variable not in environ and "SLURM_JOB_ID" not in environ:  # no batch script: of that, SLURM tells both
            variable = "SLURM_NTASKS"
    number = _number(environ, variable) if variable in environ else None
    if number is None and launcher.rank == "PMIX_RANK" and size == 1 and rank == 0:
        raise UsageError(
            f"PMIX_RANK=0: {launcher.name} has started this process and does not say how many there are (RANK and "
            f"WORLD_SIZE are not set). {_remedy(None)}"
        )
    if max(number or 1, rank + 1) <= size:
        return
    seen = " and ".join(f"{name}={environ[name]}" for name in (launcher.rank, variable) if name in environ)
    what = "RANK and WORLD_SIZE are not set" if "RANK" not in environ else f"WORLD_SIZE={size}"
    raise UsageError(
        f"{seen}: {launcher.name} has started processes that are no world ({what}), and each would train alone. "
        f"{_remedy(number)}"
    )


def _remedy(number: int | None) -> str:
    count = "N" if number is None else number
    return (
        f"Start privlm once, with trainer=ddp trainer.processes={count}, or with `torchrun --nproc-per-node {count} -m "
        "privlm run ...`"
    )


def _number(environ: Variables, name: str) -> int:
    """Raises UsageError for what is no number from 0."""
    text = environ[name].strip()
    if not (text.isascii() and text.isdecimal() and len(text) < MAX_DIGITS):
        shown = text if len(text) <= MAX_DIGITS else f"{text[:MAX_DIGITS]}..."
        raise UsageError(f"{name}={shown!r} is no number from 0: unset it, or give the number that the launcher means")
    return int(text)


def _parent_command() -> list[str]:
    """The words of the parent process, [] where the system does not tell them."""
    try:
        content = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return content.decode("utf-8", "replace").split("\0")


def _option(words: list[str], name: str) -> int | None:
    """The number that `--name N` or `--name=N` gives, spelled with hyphens or underscores."""
    for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:
            text = value if equals else following
            return int(text) if text.isascii() and text.isdecimal() else None
    return None
