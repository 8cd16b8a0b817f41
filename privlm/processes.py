"""The place of this process among those of its run: alone, one of an outer launcher, or one of privlm.workers."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from privlm import launchers
from privlm.errors import PrivLMError
from privlm.signals import signal_at_death_of_parent

LOST_PEER = re.compile(r"gloo|nccl|closed by peer|reset by peer|broken pipe|timed out waiting", re.IGNORECASE)
"""In what torch.distributed says where another process has gone."""


def outer_world() -> int | None:
    """Number of processes of an outer launcher (torchrun, say), None when there is none.

    Raises UsageError where one has started several processes that are no world (privlm.launchers).
    """
    world = launchers.outer_world()
    return None if world is None else world[1]


def asked_for() -> int | None:
    """Number of processes that an outer launcher was asked for, whether it started them or they are ours to start."""
    return outer_world() or launchers.accelerate_processes()


def is_spawned() -> bool:
    """Whether this process is a worker that `privlm.workers.spawn` started."""
    return "PRIVLM_SPAWNED" in os.environ


def outer_rank() -> int:
    world = launchers.outer_world()
    return 0 if world is None else world[0]


def is_main() -> bool:
    return outer_rank() == 0


def decide(function: Callable[[], str]) -> str:
    """What `function` returns in the main process, told to all processes of an outer launcher.

    When it raises there, the others end quietly with the same exit status. Raises PrivLMError where the processes do
    not meet.
    """
    if outer_world() is None:
        return function()
    from accelerate.utils import broadcast_object_list

    from privlm.training.accelerator import join_world

    join_world()
    message: list[Any] = [None]
    error: PrivLMError | None = None
    if is_main():
        try:
            message = [function()]
        except PrivLMError as raised:
            error, message = raised, [raised.exit_code]
    decision = broadcast_object_list(message)[0]
    if error is not None:
        raise error
    if isinstance(decision, int):
        sys.exit(decision)
    return decision


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that another process of the run has gone: it is no cause then."""
    while error is not None:
        if isinstance(error, RuntimeError) and LOST_PEER.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def stop_with_launcher() -> None:
    """Has this process save and leave when its torchrun is gone, which was killed: nobody would watch over it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_death_of_parent(signal.SIGTERM)
