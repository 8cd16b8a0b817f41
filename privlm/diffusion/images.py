"""The images of a run with their captions: rendered shapes, or a folder of a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from privlm.content import Content, digest_of_rows, of_splits, remembered, repository_name, source_name
from privlm.diffusion.image_folder import fingerprinted
from privlm.diffusion.image_rows import SPLITS, ImageRow, Images
from privlm.diffusion.image_schema import ImagesConfig
from privlm.diffusion.own_images import look_through
from privlm.diffusion.scenes import every_scene
from privlm.diffusion.shapes_data import held_out_scenes, shapes_rows
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.schema import require_packages

__all__ = ["ImageRow", "Images", "content_of", "image_inputs", "load_images", "require_images"]

HUB_FILES = {"captions": "metadata.*", "images": "*"}
"""Patterns of what a repository must hold; of one that packs its images, the images are missed one by one."""


def require_images(data: Any) -> None:
    """Raises UsageError for data of another kind, and where nothing can read or draw images."""
    if not hasattr(data, "caption_style"):
        raise UsageError(f"data: '{data.name}' is data of another kind; this task takes images: data=shapes")
    require_packages(f"data={data.name}", "PIL", extra="diffusion")


def image_inputs(data: Any) -> dict[str, str]:
    """Fingerprints of what is read, for a runner's `inputs`; rendered shapes read nothing.

    Raises UsageError for what is not at hand.
    """
    require_images(data)
    if data.source == "shapes":
        return {}
    root, revision = _root(data)
    return {"data": revision or _fingerprint(root)}


def content_of(data: Any, fingerprint: str = "") -> Content:
    """What is behind the name of the data, for a runner's `contents`. fingerprint: what `image_inputs` gave.

    Reads the images, so that what is wrong is told before anything is written.
    """

    def read() -> Content:
        images = load_images(data)
        splits = {name: _digest(name, images.split(name)) for name in SPLITS if images.split(name)}
        source = source_name(data.path) if data.path else repository_name(data.hub_id or data.name)
        return of_splits(data, source, splits, fingerprint)

    return remembered(ImagesConfig, data, fingerprint, read)


def load_images(data: Any) -> Images:
    """The images that the group `data` describes. data: an ImagesConfig, or the node of a composed configuration.

    A folder is looked through once in a process, every image decoded, while its files stay as they are.

    Raises UsageError: nothing at hand, nothing to train on, a malformed table of captions, or more rows that cannot be
    used than data.max_bad_share allows.
    """
    require_images(data)
    return _shapes(data) if data.source == "shapes" else _folder(data)


def _shapes(data: Any) -> Images:
    rows, held_out = shapes_rows(data), held_out_scenes(data.heldout_share, data.seed)
    told = (
        f"rendered shapes, nobody's data; {len(held_out)} of {len(every_scene())} scenes held out of training, "
        f"sentences in {data.caption_style} words"
    )
    return Images(rows["train"], rows["validation"], rows["test"], [told], held_out)


def _folder(data: Any) -> Images:
    root, _ = _root(data)
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in fingerprinted(root)]
    key = repr((stamps, [(one.name, getattr(data, one.name)) for one in fields(ImagesConfig)]))
    if key not in _remembered:
        images = look_through(root, data)
        _remembered.clear()
        _remembered[key] = images
    return _remembered[key]


_remembered: dict[str, Images] = {}


def _root(data: Any) -> tuple[Path, str | None]:
    """The folder, and of a repository its fingerprint."""
    if data.path is not None:
        root = Path(data.path).expanduser()
        if not root.is_dir():
            raise UsageError(f"data.path: there is no folder {root}")
        return root, None
    if data.hub_id is None:
        raise UsageError("data.path: name the folder of images, data.path=FOLDER")
    return _from_hub(data)


def _from_hub(data: Any) -> tuple[Path, str]:
    from privlm.data.locate import from_hub

    remedy = "give data.path=FOLDER with metadata.jsonl and the unpacked images"
    files, revision = from_hub(data.name, data.hub_id, HUB_FILES, remedy, "data=shapes, which is rendered here")
    return files["captions"][0].parent, f"hub:{data.hub_id}@{revision}"


def _fingerprint(root: Path) -> str:
    """Of all images and captions, whatever the folder is called."""
    digest = sha256()
    for path in fingerprinted(root):
        digest.update(f"{path.relative_to(root).as_posix()}\n{sha256_file(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _digest(split: str, rows: Sequence[ImageRow]) -> str:
    columns = [[row.digest for row in rows], [row.text for row in rows], [row.prompt for row in rows]]
    return digest_of_rows(split, columns)
