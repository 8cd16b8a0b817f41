"""Latents of images with what goes beside them, as a data set of the trainer.

What a step draws must not depend on the steps before it, and with privacy an image is one record. So a random crop or
flip is no second row: all views of an image are there, and a step takes one of them by the example's own random stream
(`one_view`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privlm.training.objective import Batch, ExampleRandom


@dataclass(frozen=True)
class Latents:
    """N images in V views each.

    values: float32 [N, V, C, h, w], scaled. time_ids: float32 [N, V, 6], what SDXL is told of size and crop.
    """

    values: Tensor
    time_ids: Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Shared:
    """Values of N rows, of which many are equal. values: [U, ...]; of: int64 [N], the value of each row."""

    values: Tensor
    of: Tensor

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        return self.values[self.of[rows]]


class LatentData:
    """Latents with what goes beside them, as a data set of the trainer.

    columns: name -> N values, a tensor [N, ...] or Shared: input_ids, or text_states (and pooled, of SDXL).
    """

    lengths = None

    def __init__(self, latents: Latents, **columns: Tensor | Shared) -> None:
        unequal = [name for name, column in columns.items() if len(column) != len(latents)]
        if unequal:
            raise ValueError(f"{len(latents)} images and {len(columns[unequal[0]])} values of {unequal[0]}")
        self.latents = latents
        self.columns = columns

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """latents float32 [B, C, h, w], and the columns; of images with several views `views` [B, V, C, h, w] instead,
        for `one_view`. Beside pooled states also time_ids [B, 6] (of views: [B, V, 6]).
        """
        batch = {name: column[indices] for name, column in self.columns.items()}
        seen = {"latents": self.latents.values[indices]}
        if "pooled" in self.columns:
            seen["time_ids"] = self.latents.time_ids[indices]
        if self.latents.values.shape[1] == 1:
            return batch | {name: value[:, 0] for name, value in seen.items()}
        return batch | {"views" if name == "latents" else name: value for name, value in seen.items()}


def one_view(batch: Batch, rng: ExampleRandom) -> dict[str, Tensor]:
    """A batch with `views` as one with `latents`: of each example the view that its stream draws for this step.

    A batch without views stays as it is.
    """
    if "views" not in batch:
        return dict(batch)
    views = batch["views"]
    drawn = rng.integers(0, views.shape[1], device=views.device, stream="view")
    rows = torch.arange(len(views), device=views.device)
    taken = {name: batch[name][rows, drawn] for name in ("views", "time_ids") if name in batch}
    taken["latents"] = taken.pop("views")
    return {name: value for name, value in batch.items() if name not in ("views", "time_ids")} | taken
