"""Learning-rate schedules as functions of the step, so that a resumed run needs no scheduler state. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

ONECYCLE_START = 1 / 25
ONECYCLE_END = 1 / 25e4
ONECYCLE_SHARE = 0.3  # of the steps that rise, where no warm-up is asked for

Schedule = Callable[[int, int, int, float], float]
"""(step, steps, warm-up steps, floor) -> what the learning rate is multiplied by; step counts from 1."""


def learning_rate_factor(config: Any, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at `step` (1-based) of `steps`.

    config: a TrainerConfig or any object with its fields schedule, warmup_steps, warmup_share, final_learning_rate.
    Raises ValueError for an unknown schedule.
    """
    if config.schedule not in SCHEDULES:
        raise ValueError(f"trainer.schedule: {config.schedule!r} is not one of {', '.join(SCHEDULES)}")
    return SCHEDULES[config.schedule](step, steps, _warmup(config, steps), config.final_learning_rate or 0.0)


def _warmup(config: Any, steps: int) -> int:
    """Steps of the warm-up: as many as asked for, or a share of all, rounded up."""
    share = config.warmup_share
    if share is None and config.schedule == "onecycle" and not config.warmup_steps:
        share = ONECYCLE_SHARE
    return config.warmup_steps if share is None else math.ceil(share * steps)


def _after_warmup(decay: Callable[[float, float], float]) -> Schedule:
    """Rises linearly, then follows `decay` of (progress in [0, 1), floor)."""

    def factor(step: int, steps: int, warmup: int, floor: float) -> float:
        if step <= warmup:
            return step / (warmup + 1)
        return decay((step - 1 - warmup) / max(1, steps - warmup), floor)

    return factor


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _onecycle(step: int, steps: int, warmup: int, floor: float) -> float:
    """Smith and Topin, "Super-Convergence" (arXiv 1708.07120), as torch's OneCycleLR: cosines up to 1 and down."""
    if step < warmup:
        return _half_cosine(ONECYCLE_START, 1.0, (step - 1) / (warmup - 1))
    return _half_cosine(1.0, ONECYCLE_END, (step - warmup) / max(1, steps - warmup))


SCHEDULES: dict[str, Schedule] = {
    "constant": _after_warmup(lambda progress, floor: 1.0),
    "linear": _after_warmup(lambda progress, floor: 1.0 - progress),
    "cosine": _after_warmup(lambda progress, floor: _half_cosine(1.0, floor, progress)),
    "onecycle": _onecycle,
}
"""trainer.schedule -> the schedule; cosine alone has a floor (trainer.final_learning_rate, a share of the rate)."""
