"""Epsilon along a range of runs by every accountant, to draw."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from privlm.errors import UsageError
from privlm.privacy.accounting import pld
from privlm.privacy.accounting.accountant import epsilon
from privlm.privacy.accounting.types import ACCOUNTANTS, CROSS_CHECKS, Segment


def epsilon_curves(
    runs: Iterable[Segment], delta: float, *, order: int = 2, adjacency: str = "add_remove"
) -> dict[str, np.ndarray]:
    """Accountant -> epsilon of each run, [number of runs]; NaN where the contour accountant refuses.

    pld is read on its coarse grid: a valid bound, at a tenth of the time.
    """
    runs = list(runs)

    def spent(run: Segment, accountant: str) -> float:
        setting: dict[str, Any] = {"accountant": accountant, "order": order, "adjacency": adjacency}
        if accountant == "pld":
            setting["discretization"] = pld.COARSE
        try:
            return epsilon([run], delta, **setting).epsilon
        except UsageError:
            if accountant in CROSS_CHECKS:
                return math.nan
            raise

    return {name: np.array([spent(run, name) for run in runs]) for name in (*ACCOUNTANTS, *CROSS_CHECKS)}


def understated(curves: dict[str, np.ndarray]) -> np.ndarray:
    """Where the Edgeworth estimate lies below the truth: contour, or pld where contour is NaN."""
    truth = np.where(np.isnan(curves["contour"]), curves["pld"], curves["contour"])
    return curves["edgeworth"] < truth
