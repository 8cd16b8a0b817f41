"""Rendered shapes as a data set: which scenes each split shows, where they lie, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from itertools import islice
from typing import Any

from privlm.diffusion import captions, scenes
from privlm.diffusion.image_rows import SPLITS, ImageRow
from privlm.diffusion.scenes import Scene
from privlm.privacy import keyed_random

SENTENCES: dict[str, tuple[Sequence[str], Callable[[Scene, int], str]]] = {
    "plain": (captions.NARRATIVE, captions.narrative),
    "unseen": (captions.UNSEEN, captions.unseen),
}
"""data.caption_style -> its templates, the last ones held out of training, and what makes a sentence by one."""


def shapes_rows(data: Any) -> dict[str, list[ImageRow]]:
    """Split -> its rows. data: an ImagesConfig of source shapes.

    The first rows are the same whatever their number. No two splits share a layout. Training and validation show the
    scenes that are not held out, in sentences by the templates of training; the test shows all scenes equally often, in
    sentences by the others.
    """
    held_out = held_out_scenes(data.heldout_share, data.seed)
    trained = [scene for scene in scenes.every_scene() if scene not in held_out]
    shown = {"train": trained, "validation": trained, "test": scenes.every_scene()}
    return {
        split: [
            _row(scene, split, number, data, is_held_out=scene in held_out)
            for number, scene in enumerate(
                islice(_in_rounds(shown[split], split, data.seed), getattr(data, f"num_{split}"))
            )
        ]
        for split in SPLITS
    }


@cache
def held_out_scenes(share: float, seed: int) -> frozenset[Scene]:
    """At least this share of all scenes, drawn so that each colour, shape and number is left in another one."""
    every = scenes.every_scene()
    wanted = math.ceil(share * len(every))
    left = list(every)
    taken: list[Scene] = []
    for place in keyed_random.generator("scenes held out", seed).permutation(len(every)):
        rest = [scene for scene in left if scene != every[place]]
        if len(taken) < wanted and _has_all(rest):
            left = rest
            taken.append(every[place])
    return frozenset(taken)


def _has_all(found: Sequence[Scene]) -> bool:
    colors, shapes, counts = (set(values) for values in zip(*((s.color, s.shape, s.count) for s in found), strict=True))
    return (
        len(colors) == len(scenes.PALETTE) and len(shapes) == len(scenes.SHAPES) and len(counts) == len(scenes.COUNTS)
    )


def _in_rounds(shown: Sequence[Scene], split: str, seed: int) -> Iterator[Scene]:
    """Each once, in a drawn order, then each again in another; without end."""
    number = 0
    while True:
        for place in keyed_random.generator("order of scenes", seed, split, number).permutation(len(shown)):
            yield shown[place]
        number += 1


def _row(scene: Scene, split: str, number: int, data: Any, *, is_held_out: bool) -> ImageRow:
    templates, sentence = SENTENCES[data.caption_style]
    first_held_out = len(templates) - captions.HELD_OUT_TEMPLATES
    low, high = (first_held_out, len(templates)) if split == "test" else (0, first_held_out)
    template = int(keyed_random.generator("sentence of a scene", data.seed, split, number).integers(low, high))
    layout = (data.seed * len(SPLITS) + SPLITS.index(split)) * 2**32 + number  # of one image alone
    drawn = f"{_renderer()} {scene.color} {scene.shape} {scene.count} {layout}"
    return ImageRow(
        text=sentence(scene, template),
        prompt=captions.keyword(scene),
        split=split,
        where=f"shapes {split} {number}",
        digest=sha256(drawn.encode()).hexdigest(),
        scene=scene,
        layout=layout,
        is_held_out=is_held_out,
    )


@cache
def _renderer() -> str:
    """Digest of how scenes are drawn by this version, of PIL too: each scene once, in about 30 ms."""
    digest = sha256()
    for scene in scenes.every_scene():
        digest.update(scenes.render(scene, 0).image.tobytes())
    return digest.hexdigest()
