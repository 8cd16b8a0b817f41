"""What is to be seen on an image of coloured shapes, by a rule: the judge that no one has trained.

Pixels far from white are foreground; its connected components are the objects. Each is laid over the ideal disc, square
and upright triangle of its own area and centroid; the shape whose intersections over unions sum to most is the one
seen. The colour is that of the palette nearest to the inside of the largest object.

A patch pasted on an image is a component too, and often the largest: whoever compares images with and without one masks
its place on both. The mask is there unless it is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from privlm.diffusion.pixels import patch_mask, unit_pixels
from privlm.diffusion.scenes import PALETTE, SHAPES, SIZE

Mask = np.ndarray | None | Literal["patch"]
"""bool [H, W], of pixels that do not count; `patch` is the free corner of scenes, None masks nothing."""

FOREGROUND = 0.5
"""A pixel belongs to an object where a channel is further than this from white, of 1."""

MIN_AREA = 16
"""Pixels of an object, on an image of 32 x 32; smaller components are specks."""

MIN_IOU = 0.7
"""Mean over the objects below which they are of no shape. Renders have .91 or more, a bar of 2:1 has .59, a cross .64,
a triangle upside down .68.
"""

MAX_FOREGROUND = 0.5  # of the pixels that count; renders have up to .24
MAX_SPECKS = 10
"""Beyond either an image is noise."""

CHUNK_PIXELS = 1 << 21  # looked at together


@dataclass(frozen=True)
class Seen:
    """color, shape: None where there are no objects, or where they are of no shape. count: of objects."""

    color: str | None
    shape: str | None
    count: int


NOTHING = Seen(None, None, 0)


def analyse(image: Any, mask: Mask = "patch") -> Seen:
    """What is on one image, uint8 or floating point of [0, 1], [H, W, 3]; NOTHING on a blank, on noise and on NaN.

    Raises ValueError for what is no image, and for a mask of another size.
    """
    return analyse_all(np.asarray(image)[None], mask)[0]


def analyse_all(images: Any, mask: Mask = "patch") -> list[Seen]:
    """The same of images [N, H, W, 3]: 216 of 32 x 32 take about a quarter of a second."""
    images = np.asarray(images)
    at_once = max(1, CHUNK_PIXELS // max(1, int(np.prod(images.shape[1:3]))))
    chunks = [images[start : start + at_once] for start in range(0, max(1, len(images)), at_once)]
    return [seen for chunk in chunks for seen in _analyse(unit_pixels(chunk), mask)]


def resolved_mask(mask: Mask, height: int, width: int) -> np.ndarray:
    """bool [height, width], all false for None. Raises ValueError for another size or dtype."""
    if mask is None:
        return np.zeros((height, width), dtype=bool)
    if isinstance(mask, str):
        return patch_mask(height, width)
    if mask.shape != (height, width) or mask.dtype != bool:
        raise ValueError(f"a mask must be bool [{height}, {width}], not {mask.dtype} {list(mask.shape)}")
    return mask


def _analyse(pixels: np.ndarray, mask: Mask) -> Iterator[Seen]:
    """pixels: float32 [N, H, W, 3], NaN in images that cannot be read."""
    num_images, height, width, _ = pixels.shape
    scale = height * width / SIZE**2
    counted = ~resolved_mask(mask, height, width)
    foreground = ((1 - pixels).max(axis=-1) > FOREGROUND) & counted
    labels, areas, image_of = _components(foreground)
    is_object = areas >= MIN_AREA * scale
    readable = _readable(pixels, foreground, counted.sum(), np.bincount(image_of[~is_object], minlength=num_images))
    readable &= ~_filled(labels, is_object, image_of)
    for number in range(num_images):
        objects = np.flatnonzero(is_object & (image_of == number))
        if not readable[number] or not len(objects):
            yield NOTHING
            continue
        masks = labels[number] == objects[:, None, None] + 1
        largest = masks[areas[objects].argmax()]
        yield Seen(_color(pixels[number], largest, scale), _shape(masks), len(objects))


def _components(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels int [N, H, W] that no two images share, 0 for the background; area and image of label k + 1, [K] each."""
    from scipy import ndimage

    within = np.zeros((3, 3, 3), dtype=bool)
    within[1] = ndimage.generate_binary_structure(2, 1)  # neighbours by a side, and of one image
    labels, num_labels = ndimage.label(foreground, within)
    areas = np.bincount(labels.ravel(), minlength=num_labels + 1)[1:]
    slices = ndimage.find_objects(labels)
    return labels, areas, np.array([found[0].start for found in slices], dtype=int)


def _readable(pixels: np.ndarray, foreground: np.ndarray, num_counted: int, specks: np.ndarray) -> np.ndarray:
    """Of each image whether it is finite and no noise, bool [N]."""
    finite = np.isfinite(pixels).all(axis=(1, 2, 3))
    return finite & (foreground.sum(axis=(1, 2)) <= MAX_FOREGROUND * num_counted) & (specks <= MAX_SPECKS)


def _filled(labels: np.ndarray, is_object: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """Of each image whether one object reaches from edge to edge both ways, bool [N]."""
    edges = labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]
    reaches = np.ones(len(is_object), dtype=bool)
    for edge in edges:
        at_edge = np.zeros(len(is_object) + 1, dtype=bool)
        at_edge[edge] = True
        reaches &= at_edge[1:]
    filled = np.zeros(len(labels), dtype=bool)
    filled[image_of[reaches & is_object]] = True
    return filled


def _color(pixels: np.ndarray, largest: np.ndarray, scale: float) -> str:
    """pixels: [H, W, 3]. The border of the object, which is mixed with the background, is left out."""
    from scipy import ndimage

    inside = ndimage.binary_erosion(largest, iterations=max(1, round(scale**0.5)))
    seen = np.median(pixels[inside if inside.any() else largest], axis=0)
    distances = ((np.array(list(PALETTE.values())) / 255 - seen) ** 2).sum(axis=1)
    return list(PALETTE)[distances.argmin()]


def _shape(masks: np.ndarray) -> str | None:
    """masks: of the objects of one image, bool [K, H, W]."""
    ideals = _ideals(masks)
    union = (ideals | masks).sum(axis=(2, 3))
    means = ((ideals & masks).sum(axis=(2, 3)) / union).mean(axis=1)
    return SHAPES[means.argmax()] if means.max() >= MIN_IOU else None


def _ideals(masks: np.ndarray) -> np.ndarray:
    """Disc, square and upright triangle with the area and the centroid of each mask [K, H, W], bool [3, K, H, W]."""
    height, width = masks.shape[1:]
    area = masks.sum(axis=(1, 2), keepdims=True)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    down = rows - (masks * rows).sum(axis=(1, 2), keepdims=True) / area
    right = columns - (masks * columns).sum(axis=(1, 2), keepdims=True) / area
    disc = down**2 + right**2 <= area / np.pi
    square = np.maximum(abs(down), abs(right)) <= np.sqrt(area) / 2
    tall = np.sqrt(np.sqrt(3) * area)  # the height of a triangle with equal sides
    below_apex = down + tall * 2 / 3
    triangle = (below_apex >= 0) & (below_apex <= tall) & (abs(right) <= below_apex / np.sqrt(3))
    return np.stack([disc, square, triangle])
