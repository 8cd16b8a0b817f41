"""Folders of images with captions, for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from privlm.config import defaults
from privlm.diffusion.image_schema import ImagesConfig
from privlm.diffusion.images import Images, load_images

RED, BLUE = (220, 30, 30), (30, 60, 220)


def pixels(number: int = 0, size: tuple[int, int] = (24, 16)) -> np.ndarray:
    """uint8 [H, W, 3], another one for each number: red, its lower right quarter blue. size: width and height."""
    width, height = size
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = RED
    image[height // 2 :, width // 2 :] = BLUE
    image[0, 0] = number % 256, number // 256, 0
    return image


def file_of(image: Any, form: str = "PNG", **options: Any) -> bytes:
    """image: an array, or an image of PIL."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format=form, **options)
    return file.getvalue()


def write_rows(folder: Path, rows: Iterable[dict[str, Any]], name: str = "metadata.jsonl") -> Path:
    """metadata.jsonl of these rows, and an image for each file_name that has none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, row in enumerate(rows):
        path = folder / str(row["file_name"])
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_of(pixels(number)))
    return folder


def rows(number: int, **others: Any) -> list[dict[str, Any]]:
    return [
        {"file_name": f"{i}.png", "text": f"a sentence {i}", "prompt": f"keyword {i}"} | others for i in range(number)
    ]


def folder_data(folder: Path, name: str = "imagefolder", **changes: Any) -> ImagesConfig:
    return defaults(ImagesConfig, "data", name, path=str(folder), hub_id=None, **changes)


def load_folder(folder: Path, name: str = "imagefolder", **changes: Any) -> Images:
    return load_images(folder_data(folder, name, **changes))
