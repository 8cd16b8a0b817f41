"""The images that the systems of a run draw of its test prompts, and what is measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.config import Config
from privlm.diffusion.clip import open_clip
from privlm.diffusion.extractors import open_extractor
from privlm.diffusion.grids import draw_grid
from privlm.diffusion.judging import judge
from privlm.job import Stage

from .drawing import Artist, kept, seed_of
from .measure import Drawn, Measures

STYLES = ("narrative", "keyword")
BASE = "base_"
"""Prefix of the splits of the base; those of the trained system have none."""


@dataclass(frozen=True)
class Test:
    """rows: those of the test that are drawn. real: their images, uint8 [N, H, W, 3]. seed: of the run."""

    rows: Sequence[Any]
    real: np.ndarray
    seed: int

    @property
    def scenes(self) -> list[Any] | None:
        """None where one is unknown, or no judge can see images of this size."""
        from privlm.diffusion.scenes import SIZE

        scenes = [row.scene for row in self.rows]
        return None if None in scenes or self.real.shape[1:3] != (SIZE, SIZE) else scenes

    @property
    def units(self) -> list[str]:
        """Images of one pair of prompts are one unit, whatever style they were drawn by."""
        return [f"{row.text}\n{row.prompt}" for row in self.rows]

    def prompts(self, style: str) -> list[str]:
        return [row.text if style == "narrative" else row.prompt for row in self.rows]


def draw(stage: Stage, test: Test, artist: Artist) -> dict[str, Drawn]:
    """Style -> what the system has drawn of the test prompts in that style."""
    found = {}
    for style in STYLES:
        prompts = test.prompts(style)

        def some(places: Sequence[int], prompts: Sequence[str] = prompts) -> np.ndarray:
            return artist.draw([prompts[place] for place in places], [seed_of(test.seed, place) for place in places])

        images = kept(stage, style, len(prompts), some, artist.sampler.batch_size)
        found[style] = _judged(images, prompts, test)
    return found


def _judged(images: np.ndarray, prompts: Sequence[str], test: Test) -> Drawn:
    held_out = np.array([row.is_held_out for row in test.rows], dtype=bool)
    judgement = None if test.scenes is None else judge(images, test.scenes, units=test.units)
    return Drawn(images, prompts, test.units, held_out, judgement)


def measures_of(config: Config, test: Test) -> Measures:
    """As task.judging says. Raises UsageError for an extractor or a CLIP model that cannot be opened."""
    judging = config.task.judging
    extractor = open_extractor(judging.extractor, judging.extractor_path)
    clip = None if judging.clip is None else open_clip(judging.clip)
    return Measures(test.real, extractor, judging.allow_small, clip)


def report_base(stage: Stage, measures: Measures, base: Mapping[str, Drawn]) -> None:
    """Of both styles."""
    for style in STYLES:
        measures.system(stage, BASE + style, base[style])
    measures.pair(stage, BASE + "narrative", "over_keyword", base["narrative"], base["keyword"])


def report_trained(stage: Stage, measures: Measures, trained: Mapping[str, Drawn], base: Mapping[str, Drawn]) -> None:
    """Of both styles, beside the base."""
    for style in STYLES:
        measures.system(stage, style, trained[style])
        measures.pair(stage, style, "over_base", trained[style], base[style])
    measures.pair(stage, "narrative", "over_keyword", trained["narrative"], base["keyword"])
    measures.gap(stage, "narrative", trained["narrative"], base["narrative"], base["keyword"])


def show(stage: Stage, test: Test, trained: Drawn, base: Mapping[str, Drawn], number: int) -> None:
    """A picture with a column a prompt: the base's image of the keywords, of the sentence, and the trained system's.

    Only of images whose prompts are nobody's: rendered shapes.
    """
    number = min(number, len(test.rows))
    if not number or stage.config.data.source != "shapes":
        return
    systems = {"keywords": base["keyword"], "sentence": base["narrative"], "sentence, trained": trained}
    images = np.concatenate([drawn.images[:number] for drawn in systems.values()])
    labels = [f"{name}: {prompt}" for name, drawn in systems.items() for prompt in drawn.prompts[:number]]
    rights = None
    if test.scenes is not None:
        rights = [bool(right) for drawn in systems.values() for right in drawn.right()[:number]]
    stage.picture("prompts", draw_grid(images, labels, columns=number, rights=rights))
