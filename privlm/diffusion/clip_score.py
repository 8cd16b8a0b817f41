"""CLIP score: how well images fit their prompts, 100 max(cos, 0) (Hessel et al., EMNLP 2021, without their weight 2.5).

clip_score(images, prompts, "/models/clip-vit-base-patch32").column     # clip_score[clip-vit-base-patch32]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privlm.diffusion.clip import Clip, open_clip
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share

NO_MODEL = "no CLIP model is configured"


@dataclass(frozen=True)
class ClipScore:
    """column: `clip_score[<model>]`. estimate: mean over the images, 0 to 100; None where there is no figure.

    absent: why there is none.
    """

    column: str
    estimate: Estimate | None
    absent: str | None = None

    def __str__(self) -> str:
        return f"n/a ({self.absent})" if self.estimate is None else f"{self.estimate.value:.2f}"


def clip_score(images: Any, prompts: Sequence[str], model: str | Path | Clip | None, units: Any = None) -> ClipScore:
    """The mean score of images [N, H, W, 3] with their prompts [N].

    model: a local folder of a CLIPModel, or an open one; None gives no figure, and says so.
    units: as of privlm.metrics.shares.share, such as the prompt of images that share one.

    Raises UsageError for a model that cannot be opened, ValueError for other numbers of images and prompts.
    """
    if model is None:
        return ClipScore("clip_score", None, NO_MODEL)
    opened = model if isinstance(model, Clip) else open_clip(model)
    each = clip_scores(images, prompts, opened)
    return ClipScore(f"clip_score[{opened.name}]", share(each / 100, units).mapped(lambda value: 100 * value))


def clip_scores(images: Any, prompts: Sequence[str], clip: Clip) -> np.ndarray:
    """Of each image with its prompt, float64 [N], 0 to 100."""
    if len(images) != len(prompts) or not len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: each image needs one, one at least")
    cosines = (clip.embed_images(images).astype(np.float64) * clip.embed_texts(prompts)).sum(axis=1)
    return 100 * cosines.clip(0, 1)
