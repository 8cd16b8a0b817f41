"""The processes that work on one run together; none is joined before it is needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from accelerate import Accelerator


class World:
    """config: of the run; without a trainer there is one process. rank: of this one."""

    def __init__(self, config: Any, rank: int) -> None:
        self.config = config
        self.rank = rank
        self.size: int = OmegaConf.select(config, "trainer.processes", default=1)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes; made once, the world verified."""
        from privlm.training.accelerator import make_accelerator

        return make_accelerator(self.config.trainer)

    def decide(self, question: Callable[[], bool]) -> bool:
        """The main process's answer, in all processes: they must take the same way."""
        if self.size == 1:
            return question()
        from accelerate.utils import broadcast_object_list

        assert self.accelerator is not None  # joins the world
        return broadcast_object_list([question() if self.rank == 0 else None])[0]

    def wait(self) -> None:
        """A point that all processes reach before one goes on."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        if "accelerator" in self.__dict__:
            from privlm.training.accelerator import leave_world

            leave_world()
