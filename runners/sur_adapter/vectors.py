"""What a language model holds of prompts: rows of one width, one row a prompt or one a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privlm.errors import UsageError

NUM_NAMED = 3
"""Of many prompts that are missing."""


@dataclass(frozen=True)
class Vectors:
    """rows: float32 [R, h] of each prompt. about: who gave them, and of which layer (JSON)."""

    rows: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @property
    def width(self) -> int:
        return next(iter(self.rows.values())).shape[1]

    def batch(self, prompts: Sequence[str], num_positions: int) -> tuple[Tensor, Tensor]:
        """Vectors [B, R, h] and which of them there are, bool [B, R]. R is 1 where each prompt has one row, else
        `num_positions`: rows beyond are left out, those missing are zeros.
        """
        rows = [self.rows[prompt] for prompt in prompts]
        length = 1 if all(len(own) == 1 for own in self.rows.values()) else num_positions
        padded = torch.zeros(len(rows), length, self.width)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for place, own in enumerate(rows):
            num_kept = min(len(own), length)
            padded[place, :num_kept], mask[place, :num_kept] = own[:num_kept].float(), True
        return padded, mask

    def require(self, prompts: Sequence[str], source: object) -> None:
        """Raises UsageError naming how many prompts have no vector, and the first of them by their place (never by
        their text, which may be private).
        """
        missing = [place for place, prompt in enumerate(prompts, start=1) if prompt not in self.rows]
        if missing:
            first = ", ".join(map(str, missing[:NUM_NAMED]))
            raise UsageError(
                f"{source} holds no vector of {len(missing):,} of {len(prompts):,} narrative prompts (rows {first}"
                f"{', ...' if len(missing) > NUM_NAMED else ''}): compute them, task.features.backend=hf"
            )


def checked(prompt_rows: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Each [R, h], of one width, all numbers. Raises UsageError for what is not."""
    found: dict[str, Tensor] = {}
    widths: dict[int, int] = {}
    for place, (prompt, value) in enumerate(prompt_rows.items(), start=1):
        if not isinstance(value, Tensor) or not 1 <= value.ndim <= 3 or not value.numel():
            raise UsageError(f"{source}: entry {place} is no vector of a prompt")
        rows = value.detach().flatten(0, -2) if value.ndim > 1 else value.detach()[None]
        if not rows.isfinite().all():
            raise UsageError(
                f"{source}: the vector of prompt {place} holds NaN or infinity; give task.features.dtype=float32, or "
                "another layer"
            )
        widths.setdefault(rows.shape[1], place)
        found[prompt] = rows
    if len(widths) > 1:
        (one, _), (other, place) = list(widths.items())[:2]
        raise UsageError(f"{source}: vectors have widths {one} and {other} (prompt {place}): they are of two models")
    if not found:
        raise UsageError(f"{source} holds no vectors")
    return found


def read_dictionary(path: Path) -> Vectors:
    """A file of the released code: a dictionary of prompts and tensors, saved by torch; tensors alone are unpickled.

    Raises UsageError for a file that is none.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip and torch, by what is wrong with the file
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"task.features.path: {path} cannot be read ({type(error).__name__}: {first_line})") from error
    if not isinstance(content, dict) or not all(isinstance(prompt, str) for prompt in content):
        raise UsageError(f"task.features.path: {path} holds no dictionary of prompts and their vectors")
    return Vectors(checked(content, path), {"backend": "precomputed"})
