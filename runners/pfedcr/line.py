"""A text line: its picture and its label. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """image: uint8 [H, W]. text: normalised, of the alphabet. where: names it without saying what it says. truth: what
    is written where the label was made wrong on purpose.
    """

    image: np.ndarray
    text: str
    where: str
    truth: str | None = None

    @property
    def width(self) -> int:
        return self.image.shape[1]
