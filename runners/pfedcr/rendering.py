"""A text as the picture of a line: font, paper, ink, and what printing and scanning do to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .fonts import Face

SIZE = 0.75  # of a font, as a share of the line's height
MARGIN = 0.25  # beside the text, likewise


@dataclass(frozen=True)
class Look:
    """paper, ink: grey levels, 0 is black. blur: radius in pixels. noise: standard deviation in grey levels. rule: a
    thin line below the text. turn: degrees either way at most.
    """

    paper: int
    ink: int
    noise: float
    blur: float = 0.0
    rule: bool = False
    turn: float = 0.0


@dataclass(frozen=True)
class Damage:
    """What a line loses: it is scaled down and up again, blurred, and gets noise (standard deviation, grey levels)."""

    scale: float
    blur: float
    noise: float


DAMAGES: dict[str, Damage | None] = {"clean": None, "medium": Damage(0.55, 0.8, 20.0), "hard": Damage(0.45, 1.0, 35.0)}
"""data.difficulty -> the damage."""


def font_size(height: int) -> int:
    return round(SIZE * height)


def draw_line(
    text: str, face: Face, look: Look, height: int, rng: np.random.Generator, damage: Damage | None = None
) -> np.ndarray:
    """uint8 [height, W], as wide as the text needs. face: at `font_size(height)`."""
    margin = round(MARGIN * height)
    left, top, right, bottom = face.font.getbbox(text)
    image = Image.new("L", (right - left + 2 * margin, height), look.paper)
    pen = ImageDraw.Draw(image)
    shift = int(rng.integers(-1, 2))
    pen.text((margin - left, (height - (bottom - top)) // 2 - top + shift), text, font=face.font, fill=look.ink)
    if look.rule:
        pen.line([(0, height - 2), (image.width, height - 2)], fill=(look.paper + look.ink) // 2)
    if look.turn:
        angle = float(rng.uniform(-look.turn, look.turn))
        image = image.rotate(angle, resample=Image.Resampling.BILINEAR, fillcolor=look.paper)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    pixels = _noisy(image, look.noise, rng)
    return pixels if damage is None else _damaged(pixels, damage, rng)


def _damaged(pixels: np.ndarray, damage: Damage, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(pixels)
    small = (max(1, round(image.width * damage.scale)), max(1, round(image.height * damage.scale)))
    image = image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)
    return _noisy(image.filter(ImageFilter.GaussianBlur(damage.blur)), damage.noise, rng)


def _noisy(image: Any, sd: float, rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(image, dtype=np.float32)
    noise = sd * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
