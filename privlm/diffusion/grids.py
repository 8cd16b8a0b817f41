"""Many images as one picture, each with its prompt below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm import files
from privlm.diffusion.pixels import unit_pixels
from privlm.report.look import ON_WHITE, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 6
CELL = 1.5  # inches of an image
LINE = 0.13  # inches of a line of a prompt
LETTERS, LINES = 26, 3
"""Of what is shown of a prompt; the JSON beside a picture has all of it."""


def draw_grid(
    images: Any,
    prompts: Sequence[str],
    *,
    columns: int = COLUMNS,
    rights: Sequence[bool | None] | None = None,
    title: str | None = None,
) -> Figure:
    """A figure for `Stage.picture` of images uint8, or floating point of [0, 1], [N, H, W, 3].

    rights: whether each image shows what was asked for, [N]: the colour of its prompt. What is not finite is grey.

    Raises ValueError for what is no image, and for other numbers of images and prompts.
    """
    from matplotlib.figure import Figure

    pixels = unit_pixels(images)
    verdicts: Sequence[bool | None] = [None] * len(pixels) if rights is None else rights
    if not len(pixels) == len(prompts) == len(verdicts):
        raise ValueError(f"{len(pixels)} images, {len(prompts)} prompts, {len(verdicts)} verdicts: one for each image")
    columns = min(columns, len(pixels))
    num_rows = -(-len(pixels) // columns)
    height = num_rows * (CELL + LINES * LINE + 0.1) + (0.35 if title else 0)
    figure = Figure(figsize=(columns * (CELL + 0.2), height), layout="constrained", dpi=120)
    if title:
        figure.suptitle(title, color=ON_WHITE.ink, fontsize=10)
    cells = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes, image, prompt, right in zip(cells, pixels, prompts, verdicts, strict=False):
        _draw(axes, image, prompt, right)
    for axes in cells[len(pixels) :]:
        axes.axis("off")
    return figure


def write_grid(path: Path, figure: Figure, prompts: Sequence[str], **told: Any) -> None:
    """The picture as PNG `path`, and `path` with the suffix .json: the prompts whole, and what else is told of each
    image (seeds=[...]) or of all of them (step=100).
    """
    with drawing("grid"):
        files.write_file(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))
    files.write_json(path.with_suffix(".json"), {"prompts": list(prompts), **told})


def _draw(axes: Any, image: Any, prompt: str, right: bool | None) -> None:
    import numpy as np

    axes.imshow(np.nan_to_num(image, nan=0.5), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    colour = ON_WHITE.ink if right is None else ON_WHITE.good if right else ON_WHITE.warn
    for side in axes.spines.values():
        side.set_color(ON_WHITE.grid if right is None else colour)
    axes.set_xlabel(_caption(prompt), color=colour, fontsize=6.5, parse_math=False)


def _caption(prompt: str) -> str:
    lines = textwrap.wrap(prompt, LETTERS, max_lines=LINES, placeholder=" ...")
    return "\n".join(lines + [""] * (LINES - len(lines)))
