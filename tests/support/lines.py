"""Text lines for tests, with and without fonts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from privlm.runners.pfedcr.alphabet import Alphabet
from privlm.runners.pfedcr.fonts import FONTS, install_line, missing_fonts
from privlm.runners.pfedcr.line import Line

needs_fonts = pytest.mark.skipif(bool(missing_fonts()), reason=f"no Chinese fonts: {install_line(FONTS)}")


def png(width: int = 60, height: int = 24, mode: str = "L", **options: Any) -> bytes:
    """An image file with vertical stripes."""
    pixels = np.tile(np.where(np.arange(width) % 8 < 3, 20, 230).astype(np.uint8), (height, 1))
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format="PNG", **options)
    return file.getvalue()


def write_client(folder: Path, rows: list[tuple[str, ...]], header: str = "image\ttext\tsplit") -> Path:
    """A client's folder: labels.tsv of these rows, and for each an image file where there is none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *("\t".join(row) for row in rows)])
    (folder / "labels.tsv").write_bytes(text.encode())
    for name, *_ in rows:
        if name and not (folder / name).exists():
            (folder / name).write_bytes(png())
    return folder


ALPHABET = Alphabet.of("abcdef")
GLYPHS = np.random.default_rng(7).integers(0, 2, size=(6, 24, 8)) * 255
"""A picture of 8 columns for each character, as unlike as chance makes them."""


def striped_line(text: str, number: int = 0) -> Line:
    """A line in which each character is its glyph, with a gap between two."""
    gap = np.full((24, 6), 255)
    parts = [part for symbol in text for part in (GLYPHS["abcdef".index(symbol)], gap)]
    return Line(np.concatenate([gap, *parts], axis=1).astype(np.uint8), text, f"line {number}")


def striped_lines(num_lines: int, seed: int = 0, longest: int = 4) -> list[Line]:
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdef"), size=rng.integers(1, longest + 1))) for _ in range(num_lines)]
    return [striped_line(text, number) for number, text in enumerate(texts)]
