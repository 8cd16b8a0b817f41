"""`privlm build shapes`: rendered scenes as a folder of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm import files
from privlm.diffusion.image_schema import ImagesConfig
from privlm.errors import UsageError
from privlm.schema import defaults, problems, require_packages

if TYPE_CHECKING:
    from privlm.diffusion.image_rows import ImageRow

PART = 10  # of `num` images one in so many is to validate, and one to test


def shapes(folder: Path, words: Sequence[str]) -> str:
    """Rendered shapes with their captions, as a folder of images: train, validation and test, each with metadata.jsonl.

    words: fields of data=shapes, num_train=2000 caption_style=plain; num=N: N images in all, a tenth to validate and a
    tenth to test. Two runs with the same words write the same bytes. Raises UsageError for an unknown field or value.
    """
    from omegaconf import OmegaConf

    require_packages("privlm build shapes", "PIL", extra="diffusion")
    given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    data = defaults(ImagesConfig, "data", "shapes", **_numbers(given))
    found = problems(OmegaConf.structured(data), None)
    if found:
        raise UsageError("\n".join(found))
    from privlm.diffusion.image_rows import SPLITS
    from privlm.diffusion.images import load_images

    images = load_images(data)
    for split in SPLITS:
        write_split(folder / split, images.split(split))
    numbers = ", ".join(f"{len(images.split(split)):,} {split}" for split in SPLITS)
    return f"{numbers}; {len(images.held_out)} of 54 scenes held out of training"


def _numbers(given: dict[str, Any]) -> dict[str, Any]:
    """The fields in place of `num`."""
    if "num" not in given:
        return given
    number, others = given["num"], {name: value for name, value in given.items() if name != "num"}
    from privlm.diffusion.image_rows import SPLITS

    if not isinstance(number, int) or number < PART:
        raise UsageError(f"num={number}: give a whole number of images, {PART} or more")
    doubled = [f"num_{split}" for split in SPLITS if f"num_{split}" in others]
    if doubled:
        raise UsageError(f"num={number} is of all splits, and {doubled[0]} of one: leave one of them out")
    part = number // PART
    return others | {"num_train": number - 2 * part, "num_validation": part, "num_test": part}


def write_split(folder: Path, rows: Sequence[ImageRow]) -> None:
    """Rendered rows as `00000.png` and so on, with metadata.jsonl as Hugging Face's imagefolder has it; nothing for no
    rows.
    """
    if not rows:
        return
    folder.mkdir(parents=True)
    lines = [json.dumps(_written(folder, row, number)) + "\n" for number, row in enumerate(rows)]
    files.write_text(folder / "metadata.jsonl", "".join(lines))


def _written(folder: Path, row: ImageRow, number: int) -> dict[str, Any]:
    from PIL import Image

    from privlm.diffusion.scenes import render

    assert row.scene is not None
    assert row.layout is not None
    rendered, name = render(row.scene, row.layout), f"{number:05d}.png"
    Image.fromarray(rendered.image).save(folder / name)
    said = {"file_name": name, "text": row.text, "prompt": row.prompt}
    seen = {"color": row.scene.color, "shape": row.scene.shape, "count": row.scene.count, "boxes": rendered.boxes}
    return said | seen | {"split": row.split, "layout": row.layout, "is_held_out": row.is_held_out}
