"""What share of images shows what was asked for, by two judges: the rule of `analyser` and the network shapes_cnn.

    judgement = judge(images, scenes)
    stage.report(split="test", **judgement.estimates())         # acc_color, acc_shape, acc_count, acc_all, and _cnn
    paired_difference(with_adapter.rule.all, without.rule.all)  # of privlm.metrics.differences

The rule is the judge; the network, which saw renders alone, is there to contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.diffusion.analyser import Mask, Seen, analyse_all
from privlm.diffusion.classifier import Classifier, load_classifier
from privlm.diffusion.scenes import Scene
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share

QUESTIONS = ("color", "shape", "count")


@dataclass(frozen=True)
class Verdicts:
    """What one judge has seen on each of N images, and whether that is what was asked for: bool [N] a question.

    all: colour, shape and count at once.
    """

    seen: tuple[Seen, ...]
    color: np.ndarray
    shape: np.ndarray
    count: np.ndarray

    @property
    def all(self) -> np.ndarray:
        return self.color & self.shape & self.count

    def accuracies(self, units: Any = None) -> dict[str, Estimate]:
        """acc_color, acc_shape, acc_count and acc_all. units: as of privlm.metrics.shares.share."""
        return {f"acc_{name}": share(getattr(self, name), units) for name in (*QUESTIONS, "all")}


@dataclass(frozen=True)
class Judgement:
    """The verdicts of both judges on the same images. units: of the images, for intervals; None: each is one."""

    rule: Verdicts
    cnn: Verdicts
    units: Any = None

    @property
    def disagree(self) -> np.ndarray:
        """On which images the judges see something else, bool [N]."""
        pairs = zip(self.rule.seen, self.cnn.seen, strict=True)
        return np.array([(a.color, a.shape, a.count) != (b.color, b.shape, b.count) for a, b in pairs])

    def estimates(self) -> dict[str, Estimate]:
        """The accuracies by the rule, by the network with the suffix `_cnn`, and the share `judges_disagree`."""
        by_network = {f"{name}_cnn": found for name, found in self.cnn.accuracies(self.units).items()}
        return self.rule.accuracies(self.units) | by_network | {"judges_disagree": share(self.disagree, self.units)}


def judge(
    images: Any,
    scenes: Sequence[Scene],
    *,
    classifier: Classifier | None = None,
    mask: Mask = "patch",
    units: Any = None,
) -> Judgement:
    """Whether each image shows its scene.

    Args:
        images: uint8, or floating point of [0, 1], [N, 32, 32, 3].
        scenes: what was asked for, [N].
        classifier: shapes_cnn as shipped where None.
        mask: pixels that no judge sees; the free corner of scenes, where a patch may lie.
        units: the unit of each image, any label, [N], such as the prompt of images of several seeds.

    Raises ValueError for other numbers of images and scenes, and for none.
    """
    if len(images) != len(scenes) or not len(scenes):
        raise ValueError(f"{len(images)} images and {len(scenes)} scenes: each image needs one, one at least")
    named = (classifier or load_classifier()).read(images, mask)
    return Judgement(verdicts(analyse_all(images, mask), scenes), verdicts(named, scenes), units)


def verdicts(seen: Sequence[Seen], scenes: Sequence[Scene]) -> Verdicts:
    """Of what a judge has seen on images of these scenes, [N] each."""
    pairs = list(zip(seen, scenes, strict=True))
    right = {name: np.array([getattr(a, name) == getattr(b, name) for a, b in pairs], dtype=bool) for name in QUESTIONS}
    return Verdicts(tuple(seen), **right)
