"""Images with their captions, wherever they come from: one of them, and the splits of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from privlm.diffusion.scenes import Scene
from privlm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageRow:
    """An image and its captions.

    text: a sentence. prompt: keywords. where: its place, for messages. digest: 64 hexadecimal digits of the image,
        equal for equal files or equal drawings.
    scene: what is to be seen, where that is known; layout: the seed of its places, where it is rendered here.
    file: where it is read from. is_held_out: no training image shows its scene.
    """

    text: str
    prompt: str
    split: str
    where: str
    digest: str
    scene: Scene | None = None
    layout: int | None = None
    file: Path | None = None
    is_held_out: bool = False

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3], rendered or read anew each time.

        Raises UsageError where the file is not the one any more that was read before.
        """
        if self.file is None:
            return self._rendered()
        from hashlib import sha256

        from privlm.diffusion.image_files import read_picture

        try:
            content = self.file.read_bytes()
        except OSError as error:
            raise UsageError(f"{self.file}: cannot be read ({error.strerror}); it was there before") from None
        if sha256(content).hexdigest() != self.digest:
            raise UsageError(
                f"{self.file}: another image than a moment ago; leave the folder alone while a run reads it"
            )
        return read_picture(content).pixels

    def _rendered(self) -> np.ndarray:
        from privlm.diffusion.scenes import render

        assert self.scene is not None
        assert self.layout is not None
        return render(self.scene, self.layout).image


@dataclass(frozen=True)
class Images:
    """notes: sentences for the results. held_out: scenes that no training image shows; empty where none are known."""

    train: list[ImageRow]
    validation: list[ImageRow]
    test: list[ImageRow]
    notes: list[str] = field(default_factory=list)
    held_out: frozenset[Scene] = frozenset()

    def split(self, name: str) -> list[ImageRow]:
        """name: one of SPLITS."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]
