"""Lines that are made here: those of the four organisations, and the server's own, in which no client has a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privlm.errors import UsageError
from privlm.privacy import keyed_random

from .alphabet import Alphabet
from .contents import WORDS, text_of
from .fonts import Face
from .line import Line
from .rendering import DAMAGES, Look, draw_line, font_size


@dataclass(frozen=True)
class Organisation:
    """What the lines of a client look like. inverted: light on dark, where data.inverted asks for it."""

    font: str
    look: Look
    inverted: Look | None = None


ORGANISATIONS = {
    "express": Organisation("noto_sans", Look(paper=246, ink=30, noise=10, rule=True, turn=1.0)),
    "bank": Organisation("ukai", Look(paper=225, ink=40, noise=6, blur=0.6)),
    "hospital": Organisation("uming", Look(paper=200, ink=40, noise=14, blur=0.9, rule=True, turn=1.5)),
    "telecom": Organisation(
        "wqy_microhei", Look(paper=236, ink=40, noise=12), inverted=Look(paper=40, ink=225, noise=12)
    ),
}

SERVER_LOOKS = (
    Look(paper=240, ink=30, noise=8, turn=1.0),
    Look(paper=210, ink=40, noise=12, blur=0.6, turn=1.0),
    Look(paper=40, ink=225, noise=10, turn=1.0),
)

SERVER_FONTS = {
    "shared": ("noto_sans", "noto_serif_bold", "wqy_microhei"),
    "disjoint": ("noto_serif_bold", "wqy_zenhei"),
}
"""task.server.fonts -> fonts. Of the shared ones two are those of express and telecom."""

SHORT, LONG = (1, 2), (3, 8)
"""Characters of a line, from and to: of the first part of the warm start, and of the rest."""


def client_fonts(organisations: Sequence[str]) -> list[str]:
    return [ORGANISATIONS[name].font for name in organisations]


def render_client(
    organisation: str, split: str, num_lines: int, data: Any, paths: dict[str, Path], height: int
) -> list[Line]:
    """A function of organisation, split and data.seed. data: a LinesConfig. paths: of the fonts.

    Raises UsageError where the font lacks a character of the contents.
    """
    rng = keyed_random.generator("rendered lines", organisation, split, data.seed)
    style = ORGANISATIONS[organisation]
    face = Face(style.font, paths[style.font], font_size(height))
    look = style.inverted if data.inverted and style.inverted else style.look
    words = WORDS[data.alphabet]
    lines = []
    for number in range(num_lines):
        text = text_of(organisation, words, rng, mixed=data.contents == "mixed")
        if not face.has_all(text):
            raise UsageError(f"data.fonts.{face.name}: the font lacks characters that {organisation} writes")
        image = draw_line(text, face, look, height, rng, DAMAGES[data.difficulty])
        lines.append(Line(image, text, f"{organisation}/{split}-{number:05d}"))
    return lines


def mislabelled(lines: Sequence[Line], share: float, alphabet: Alphabet, *key: int | str) -> list[Line]:
    """The lines, of which a share (rounded) has one character of its label replaced by another."""
    rng = keyed_random.generator("wrong labels", *key)
    chosen = set(rng.choice(len(lines), round(share * len(lines)), replace=False).tolist())
    return [_mislabelled(line, alphabet, rng) if number in chosen else line for number, line in enumerate(lines)]


def _mislabelled(line: Line, alphabet: Alphabet, rng: np.random.Generator) -> Line:
    place = int(rng.integers(len(line.text)))
    others = [symbol for symbol in alphabet.symbols if symbol != line.text[place]]
    text = line.text[:place] + str(rng.choice(others)) + line.text[place + 1 :]
    return Line(line.image, text, line.where, truth=line.text)


# --- the server's ---------------------------------------------------------------------------------------------------


def balanced_texts(alphabet: Alphabet, num_lines: int, sizes: tuple[int, int], rng: np.random.Generator) -> list[str]:
    """Random characters in random order, every one equally often: lines of sizes[0] to sizes[1] characters, more of
    them than asked for only where the alphabet would not occur once.
    """
    symbols = np.array(list(alphabet.symbols))
    low, high = sizes
    lengths = rng.integers(low, high + 1, size=max(num_lines, -(-len(symbols) // high)))
    times = max(1, round(int(lengths.sum()) / len(symbols)))
    _fit(lengths, times * len(symbols), low, high, rng)
    pool = rng.permutation(np.tile(symbols, times))
    pool = np.concatenate([pool, symbols])[: int(lengths.sum())]
    ends = np.cumsum(lengths)
    return ["".join(pool[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _fit(lengths: np.ndarray, total: int, low: int, high: int, rng: np.random.Generator) -> None:
    """Changes lengths by single steps until they sum to `total`, as far as their bounds let them."""
    while (missing := total - int(lengths.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = np.flatnonzero(lengths < high if step > 0 else lengths > low)
        if not len(movable):
            return
        lengths[rng.permutation(movable)[: abs(missing)]] += step


def virtual_lines(
    alphabet: Alphabet, num_lines: int, sizes: tuple[int, int], paths: dict[str, Path], height: int, *key: int | str
) -> list[Line]:
    """The server's balanced set, from fonts alone. paths: of its fonts; one that lacks a character of a text is not
    taken for it.

    Raises UsageError for a text that no font has all characters of.
    """
    rng = keyed_random.generator("virtual lines", *key)
    faces = [Face(name, path, font_size(height)) for name, path in paths.items()]
    require_covered(alphabet, faces)
    lines = []
    for number, text in enumerate(balanced_texts(alphabet, num_lines, sizes, rng)):
        usable = [face for face in faces if face.has_all(text)]
        if not usable:
            raise UsageError(
                f"task.server.fonts: no font has all characters of a virtual line; {', '.join(paths)} differ in what "
                "they have: give one with all of them as data.fonts={noto_sans: FILE}"
            )
        face = usable[int(rng.integers(len(usable)))]
        look = SERVER_LOOKS[int(rng.integers(len(SERVER_LOOKS)))]
        lines.append(Line(draw_line(text, face, look, height, rng), text, f"virtual-{number:05d}"))
    return lines


def require_covered(alphabet: Alphabet, faces: Sequence[Face]) -> None:
    """Raises UsageError naming characters that no font has."""
    absent = [symbol for symbol in alphabet.symbols if not any(face.has(symbol) for face in faces)]
    if absent:
        raise UsageError(
            f"task.server.fonts: no font of {', '.join(face.name for face in faces)} has {', '.join(absent[:5])}"
            f"{f' and {len(absent) - 5} more' if len(absent) > 5 else ''}: leave them out of data.alphabet, or give "
            "another font in data.fonts"
        )
