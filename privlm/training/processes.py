"""What the processes of one run tell each other; one process alone is answered by itself."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from privlm.privacy.release import World


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    return broadcast_object_list([value])[0]


def sum_over_processes(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    """Adds up a tensor of the same shape from all processes, in place."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def sum_by_name(accelerator: Accelerator, numbers: dict[str, float]) -> dict[str, float]:
    """Adds up numbers that only some of the processes may have."""
    if accelerator.num_processes == 1:
        return numbers
    everyone: list[dict[str, float]] = gather_object([numbers])
    names = dict.fromkeys(name for each in everyone for name in each)
    return {name: sum(each.get(name, 0.0) for each in everyone) for name in names}


def agree_on_signal(accelerator: Accelerator, signum: int) -> int:
    """The signal that any process has received, so that all leave at the same step; 0 if none has."""
    if accelerator.num_processes == 1:
        return signum
    received = torch.tensor(signum, device=accelerator.device)
    torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
    return int(received)


def world_of(accelerator: Accelerator) -> World | None:
    """The ranks as the privacy engine knows them."""
    if accelerator.num_processes == 1:
        return None
    return World(accelerator.process_index, accelerator.num_processes, all_reduce=torch.distributed.all_reduce)
