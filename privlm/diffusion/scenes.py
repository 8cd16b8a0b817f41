"""Rendered scenes of a few coloured shapes: what a small text-to-image model can learn, and a rule can judge.

A scene says what is to be seen, a layout seed where. Shapes are drawn at four times the size and averaged, so that
edges are smooth; boxes lie on whole pixels, which makes a scene easy to learn and to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privlm.privacy import keyed_random

if TYPE_CHECKING:
    import numpy as np

SIZE = 32
"""Pixels of a side of an image."""

PALETTE = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "purple": (150, 40, 170),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle")
COUNTS = (1, 2, 3)
BACKGROUND = (255, 255, 255)

PATCH = (0, 0, 8, 8)
"""Left, top, right, bottom of a corner that no layout puts anything into; right and bottom are past the end."""

RADII = {1: (6.0, 8.5), 2: (4.2, 5.2), 3: (4.2, 5.2)}
"""Number of shapes -> the range of their radius in pixels."""

GAP = 2  # pixels between two boxes
BORDER = 1  # pixels between a box and the edge of the image
SUPERSAMPLING = 4
TRIES = 200  # of one layout, before all of it is laid out anew

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are past the end."""


@dataclass(frozen=True)
class Scene:
    """`count` shapes of one kind and colour."""

    color: str
    shape: str
    count: int


@dataclass(frozen=True)
class Rendered:
    """image: uint8 [32, 32, 3]. boxes: of the shapes, from left to right."""

    image: np.ndarray
    boxes: tuple[Box, ...]


def every_scene() -> list[Scene]:
    """All 54, in a fixed order."""
    return [Scene(color, shape, count) for color in PALETTE for shape in SHAPES for count in COUNTS]


def render(scene: Scene, layout: int) -> Rendered:
    """`scene` with the sizes and places that the seed `layout` gives; the same bytes each time."""
    import numpy as np
    from PIL import Image, ImageDraw

    boxes = _boxes(scene, layout)
    side = SIZE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for box in boxes:
        _draw(draw, scene.shape, PALETTE[scene.color], box)
    image = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))
    return Rendered(image, tuple(sorted(boxes)))


def _draw(draw, shape: str, color: tuple[int, int, int], box: Box) -> None:
    """PIL draws the last pixel of a box too."""
    left, top, right, bottom = (edge * SUPERSAMPLING for edge in box)
    if shape == "circle":
        draw.ellipse((left, top, right - 1, bottom - 1), fill=color)
    elif shape == "square":
        draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
    else:
        draw.polygon([((left + right - 1) / 2, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=color)


def _boxes(scene: Scene, layout: int) -> list[Box]:
    """Boxes that keep their distance from each other, from the border and from the free corner."""
    random = keyed_random.generator("layout of a scene", scene.color, scene.shape, scene.count, layout)
    while True:
        boxes: list[Box] = []
        for _ in range(TRIES):
            box = _box(scene, random)
            if all(_apart(box, other, GAP) for other in boxes) and _apart(box, PATCH, 0):
                boxes.append(box)
            if len(boxes) == scene.count:
                return boxes


def _box(scene: Scene, random: np.random.Generator) -> Box:
    radius = random.uniform(*RADII[scene.count])
    width, height = _extent(scene.shape, radius)
    left = int(random.integers(BORDER, SIZE - BORDER - width + 1))
    top = int(random.integers(BORDER, SIZE - BORDER - height + 1))
    return left, top, left + width, top + height


def _extent(shape: str, radius: float) -> tuple[int, int]:
    """Width and height of a box: of a circle the diameter, of a square .9 of it, of a triangle with equal sides."""
    if shape == "square":
        return (side := round(1.8 * radius)), side
    return round(2 * radius), round((2 if shape == "circle" else 3**0.5) * radius)


def _apart(box: Box, other: Box, gap: int) -> bool:
    return box[2] + gap <= other[0] or other[2] + gap <= box[0] or box[3] + gap <= other[1] or other[3] + gap <= box[1]
