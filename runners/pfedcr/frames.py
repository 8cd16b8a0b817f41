"""How many columns a recogniser sees of a line, and how many a text needs. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

NUM_FRAMES: dict[str, Callable[[Any], Any]] = {
    "crnn_small": lambda width: (width + 1) // 2,
    "crnn": lambda width: width // 4 - 1,
}
"""model.family -> width in pixels (a number, an array or a tensor) -> frames."""


def frames_needed(text: Sequence[Any]) -> int:
    """Of CTC: a frame for each character, and a blank between equal neighbours."""
    return len(text) + sum(first == second for first, second in pairwise(text))
