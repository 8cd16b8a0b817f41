"""The one Accelerator of a process: device, precision and the world it is part of, checked against what was asked
for.
"""

from __future__ import annotations

import inspect
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from privlm.errors import PrivLMError, UsageError

PRECISION = {"fp32": "no", "bf16": "bf16"}


def make_accelerator(config: Any) -> Accelerator:
    """The Accelerator for a TrainerConfig.

    Raises UsageError for a keyword in trainer.accelerate that accelerate does not know, PrivLMError when the world is
    not the one that the config asks for (accelerate itself falls back to one process without a word).
    """
    keywords = {"mixed_precision": PRECISION[config.precision]} | dict(config.accelerate)
    try:
        inspect.signature(Accelerator).bind(**keywords)
    except TypeError as error:
        raise UsageError(f"trainer.accelerate: accelerate.Accelerator {error}") from error
    accelerator = Accelerator(**keywords)
    if accelerator.num_processes != config.processes:
        raise PrivLMError(
            f"trainer.processes={config.processes}, but accelerate runs {accelerator.num_processes} process(es): start the "
            "run without an outer launcher, or with `torchrun --nproc-per-node N -m privlm run ...`"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UsageError("FSDP and DeepSpeed are not supported: use trainer=single or trainer=ddp")
    return accelerator
