"""What becomes of a picture and its label: a line of the run, or a problem that is counted and named."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from privlm.errors import UsageError

from .alphabet import Alphabet, normalised
from .frames import NUM_FRAMES, frames_needed
from .line import Line

MIN_WIDTH = 4  # pixels, of a line as the recogniser sees it
MAX_PIXELS = 1 << 26  # of a picture as it lies there: beyond that it is no line of text
NUM_NAMED = 3  # of many lines with one problem


@dataclass
class Admission:
    """The rules by which lines are taken, and what they have kept out.

    family, height, max_width: of the recogniser. on_oov: what happens to a label with a character outside the alphabet:
    skip the line, or fail; `extend` was seen to before. refused: problem -> where.
    """

    alphabet: Alphabet
    family: str
    height: int
    max_width: int
    on_oov: str = "skip"
    simplified: Mapping[str, str] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def line(self, content: bytes | None, label: str, where: str) -> Line | None:
        """content: of an image file of any kind; None where there is no file.

        Raises UsageError, naming the line and not its text, for an unknown character under on_oov=fail.
        """
        text = normalised(label, self.simplified)
        if not text:
            return self._refuse("empty label", where)
        if self.alphabet.unknown(text):
            if self.on_oov == "fail":
                raise UsageError(
                    f"{where}: its label has {len(self.alphabet.unknown(text))} characters that data.alphabet lacks; "
                    "add them to it, or choose data.on_oov=skip"
                )
            return self._refuse("character outside the alphabet", where)
        if content is None:
            return self._refuse("no image", where)
        image = grey(content)
        if image is None:
            return self._refuse("image that cannot be read", where)
        return self.sized(image, text, where)

    def sized(self, image: Image.Image, text: str, where: str, truth: str | None = None) -> Line | None:
        """The line at the recogniser's height, its proportions kept. image: of mode L."""
        width = round(image.width * self.height / image.height)
        if width < MIN_WIDTH or image.width < 2:
            return self._refuse("too narrow", where)
        if width > self.max_width:
            return self._refuse("wider than model.max_width", where)
        if NUM_FRAMES[self.family](width) < frames_needed(text):
            return self._refuse("label too long for its width", where)
        size = (width, self.height)
        pixels = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
        return Line(pixels, text, where, truth)

    def _refuse(self, problem: str, where: str) -> Line | None:
        self.refused[problem].append(where)
        return None

    def notes(self, client: str) -> list[str]:
        """One sentence a problem; of a line its place is told, never its text."""
        return [
            f"{client}: {len(places)} lines left out: {problem} ({', '.join(places[:NUM_NAMED])}"
            f"{', ...' if len(places) > NUM_NAMED else ''})"
            for problem, places in self.refused.items()
        ]


def grey(content: bytes) -> Any:
    """An image file as a picture of mode L, what is transparent on white; None where it cannot be read."""
    try:
        image: Any = Image.open(io.BytesIO(content))
        if not 0 < image.width * image.height <= MAX_PIXELS:
            return None
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
