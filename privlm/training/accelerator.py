"""The one Accelerator of a process: device, precision and the world it is part of, checked against what was asked
for.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from privlm import launchers
from privlm.errors import PrivLMError, UsageError

logger = logging.getLogger("privlm")

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""trainer.precision -> accelerate's mixed_precision."""

WORLDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
OUTER_PRECISION = "ACCELERATE_MIXED_PRECISION"  # what `accelerate launch` was asked for
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
MPS = torch.device("mps")  # Apple's GPUs, on which accelerate scales no losses


def make_accelerator(config: Any) -> Accelerator:
    """The Accelerator for a TrainerConfig.

    Raises UsageError for a keyword in trainer.accelerate that accelerate does not know, for half precision on a CPU and
    for an outer launcher whose world does not come through (privlm.launchers), PrivLMError when the world is not the
    one that the config asks for (accelerate itself falls back to one process without a word).
    """
    launchers.outer_world()
    # Without an accelerator accelerate must be told to use the CPU, else it ignores the other processes.
    cpu = not torch.accelerator.is_available()
    keywords = {"mixed_precision": PRECISION[config.precision], "cpu": cpu} | dict(config.accelerate)
    if keywords["mixed_precision"] == "fp16" and (keywords["cpu"] or torch.accelerator.current_accelerator() == MPS):
        raise UsageError("trainer.precision=fp16 needs a CUDA GPU: use trainer.precision=bf16 or fp32")
    if config.deterministic:
        _set_cublas_workspace()
    try:
        inspect.signature(Accelerator).bind(**keywords)
    except TypeError as error:
        raise UsageError(f"trainer.accelerate: accelerate.Accelerator {error}") from error
    accelerator = Accelerator(**keywords)
    if accelerator.num_processes != config.processes:
        raise PrivLMError(
            f"trainer.processes={config.processes}, but accelerate runs {accelerator.num_processes}: start the "
            "run without an outer launcher, or with `torchrun --nproc-per-node N -m privlm run ...`"
        )
    if accelerator.distributed_type not in WORLDS:
        kind = accelerator.distributed_type.value
        raise UsageError(f"{kind}: FSDP and DeepSpeed are not supported: use trainer=single or trainer=ddp")
    outer = os.environ.get(OUTER_PRECISION, "no")
    if outer not in ("no", keywords["mixed_precision"]):
        logger.warning("%s=%s has no effect: trainer.precision=%s decides", OUTER_PRECISION, outer, config.precision)
    return accelerator


@contextlib.contextmanager
def deterministic(wanted: bool | None) -> Iterator[None]:
    """Lets torch use deterministic algorithms alone, where wanted; afterwards it is as it was before.

    Raises PrivLMError where an operation has none.
    """
    if not wanted:
        yield
        return
    _set_cublas_workspace()
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise PrivLMError(
            f"trainer.deterministic=true: {str(error).partition('.')[0]}; set trainer.deterministic=null, or train on "
            "a CPU"
        ) from error
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _set_cublas_workspace() -> None:
    """Before the first call of cuBLAS, which reads it once; what the user has set stays."""
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")


def join_world() -> None:
    """Joins the processes of an outer launcher, before there is a configuration to make an Accelerator from.

    Raises PrivLMError where they do not meet.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would wait for the others to come
    try:
        PartialState(cpu=not torch.accelerator.is_available())
    except (RuntimeError, ValueError) as error:
        address = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        raise PrivLMError(f"the processes of the outer launcher do not meet at {address}: {reason}") from error
    finally:
        signal.signal(signal.SIGINT, handler)


def leave_world() -> None:
    """Ends the process group and forgets the Accelerator, so that another run may make its own in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
