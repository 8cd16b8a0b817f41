"""Learning-rate schedules as functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate_factor(schedule: str, step: int, steps: int, warmup_steps: int) -> float:
    """What the base learning rate is multiplied by at `step` (1-based) of `steps`.

    Rises linearly over `warmup_steps`, then stays (constant) or falls to zero (linear, cosine).
    Raises ValueError for an unknown schedule.
    """
    if step <= warmup_steps:
        return step / (warmup_steps + 1)
    progress = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"schedule {schedule!r} is not constant, linear or cosine")
