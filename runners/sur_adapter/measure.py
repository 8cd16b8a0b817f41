"""What the images of a run are measured by: judges of shapes, distances from real images, the CLIP score, and pairs of
images that two systems have drawn of the same prompts from the same noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privlm.diffusion.clip_score import ClipScore, clip_score
from privlm.diffusion.distances import Distance, frechet_distance, kernel_distance
from privlm.diffusion.extractors import Extractor
from privlm.diffusion.judging import Judgement
from privlm.errors import UsageError
from privlm.job import Stage
from privlm.metrics.differences import paired_difference
from privlm.metrics.estimate import Z_95, Estimate
from privlm.metrics.shares import share
from privlm.metrics.statistic import statistic

MIN_GAP = 0.05
"""Of accuracy between keywords and sentences of the base; a ratio over less is a ratio of noise."""

HELD_OUT = "_held_out"
"""Suffix of the split of scenes that no training image shows."""


@dataclass(frozen=True)
class Drawn:
    """Images of one system for one style of prompts, and what the judges say of them: None where scenes are unknown.

    units: of the images, the prompt of each; images of one prompt are no independent trials. held_out: bool [N].
    """

    images: np.ndarray
    prompts: Sequence[str]
    units: Sequence[str]
    held_out: np.ndarray
    judgement: Judgement | None = None

    def right(self, question: str = "all") -> np.ndarray:
        """By the rule, bool [N]."""
        assert self.judgement is not None
        return getattr(self.judgement.rule, question)

    @property
    def merit(self) -> np.ndarray:
        """How many of colour, shape and count are right, [N]."""
        return np.sum([self.right(question) for question in ("color", "shape", "count")], axis=0)


@dataclass
class Measures:
    """What systems are measured by. absent: why figures are not there, by their names."""

    real: np.ndarray
    extractor: Extractor | None
    allow_small: bool = False
    clip: Any = None
    absent: dict[str, str] = field(default_factory=dict)

    def system(self, stage: Stage, split: str, drawn: Drawn) -> None:
        """Reports accuracies, of held-out scenes apart, distances and the CLIP score under the name of a system."""
        stage.report(split=split, unit="images", images=len(drawn.images))
        if drawn.judgement is None:
            self.absent["accuracies"] = "the data name no scenes"
        else:
            _report(stage, split, drawn.judgement.estimates())
            self._held_out(stage, split, drawn)
        for distance in self._distances(drawn.images):
            _report(stage, split, {distance.name: _with_error(distance)}, unit="distance")
        self._clip_score(stage, split, drawn)

    def pair(self, stage: Stage, split: str, name: str, one: Drawn, other: Drawn) -> None:
        """Reports how often `one` is better than `other` on the same prompt, a tie counting half, and by how much."""
        if one.judgement is None or other.judgement is None:
            return
        won = (np.sign(one.merit - other.merit) + 1) / 2
        gain = paired_difference(one.right(), other.right(), one.units)
        _report(stage, split, {f"win_rate_{name}": share(won, one.units), f"gain_{name}": gain})

    def gap(self, stage: Stage, split: str, adapted: Drawn, narrative: Drawn, keyword: Drawn) -> None:
        """Reports gap_closed, or says why there is none. narrative, keyword: of the base."""
        if adapted.judgement is None:
            self.absent["gap_closed"] = "the data name no scenes"
            return
        found = gap_closed(adapted, narrative, keyword)
        if isinstance(found, str):
            self.absent["gap_closed"] = found
        else:
            stage.report(split=split, gap_closed=found)

    def notes(self) -> list[str]:
        return [f"{name}: n/a ({reason})" for name, reason in self.absent.items()]

    def _held_out(self, stage: Stage, split: str, drawn: Drawn) -> None:
        if not drawn.held_out.any() or drawn.held_out.all():
            return
        assert drawn.judgement is not None
        units = np.asarray(drawn.units)[drawn.held_out]
        names = ("color", "shape", "count", "all")
        found = {f"acc_{name}": share(drawn.right(name)[drawn.held_out], units) for name in names}
        _report(stage, split + HELD_OUT, found)

    def _distances(self, images: np.ndarray) -> list[Distance]:
        if self.extractor is None:
            return []
        found = []
        for name, distance in (
            ("kid", lambda: kernel_distance(self.real, images, self.extractor)),
            ("fid", lambda: frechet_distance(self.real, images, self.extractor, allow_small=self.allow_small)),
        ):
            try:
                found.append(distance())
            except UsageError as error:  # too few images
                self.absent[f"{name}[{self.extractor.name}]"] = str(error)
        return found

    def _clip_score(self, stage: Stage, split: str, drawn: Drawn) -> None:
        found: ClipScore = clip_score(drawn.images, drawn.prompts, self.clip, drawn.units)
        if found.estimate is None:
            self.absent[found.column] = found.absent or ""
        else:
            _report(stage, split, {found.column: found.estimate}, unit="points")


def _report(stage: Stage, split: str, found: Mapping[str, Any], **told: Any) -> None:
    """Under names that are computed."""
    stage.report(split=split, **told, **found)


def gap_closed(adapted: Drawn, narrative: Drawn, keyword: Drawn) -> Estimate | str:
    """(adapted - narrative) / (keyword - narrative) of the accuracy of all three questions, with an interval over
    prompts; or why it is none.
    """
    columns = [_by_unit(drawn.right(), adapted.units) for drawn in (adapted, narrative, keyword)]
    gap = float(keyword.right().mean() - narrative.right().mean())
    if gap < MIN_GAP:
        return (
            f"keywords are right {100 * gap:.1f} points more often than sentences, less than {100 * MIN_GAP:g}: a "
            "ratio over that would be noise"
        )

    def ratio(one: np.ndarray, low: np.ndarray, high: np.ndarray, axis: int = -1) -> Any:
        return (one.mean(axis) - low.mean(axis)) / (high.mean(axis) - low.mean(axis))

    return statistic(ratio, *columns)


def _by_unit(right: np.ndarray, units: Sequence[str]) -> np.ndarray:
    """Mean of each unit, in the order of their names."""
    _, place = np.unique(np.asarray(units), return_inverse=True)
    return np.bincount(place, right) / np.bincount(place)


def _with_error(distance: Distance) -> Estimate:
    """A distance with the interval that its standard error gives, where it has one."""
    if distance.standard_error is None:
        return Estimate(distance.value, None, None, distance.n_fake)
    half = Z_95 * distance.standard_error
    return Estimate(distance.value, distance.value - half, distance.value + half, distance.n_fake)
