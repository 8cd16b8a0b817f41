"""From the bytes of an image file of any common kind to pixels, and from pixels to the square that a model sees."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, by PIL's names; a name's ending does not decide. None of them starts another program."""

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MIN_SIDE = 8  # pixels: what is smaller shows nothing
MAX_PIXELS = 1 << 26  # of a file: beyond that a small file could fill the memory
TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")
WHITE = (255, 255, 255)


class UnusableError(Exception):
    """An image that cannot be used; the message is the problem, a clause."""


@dataclass(frozen=True)
class Picture:
    """pixels: uint8 [H, W, 3], upright, what is transparent on white. is_animated: this is the first of its frames."""

    pixels: np.ndarray
    is_animated: bool


@dataclass(frozen=True)
class Fitted:
    """pixels: uint8 [R, R, 3]. time_ids: of SDXL: height and width of the image, top and left of the crop in the
    resized image, R and R again.
    """

    pixels: np.ndarray
    time_ids: tuple[int, int, int, int, int, int]


def read_picture(content: bytes) -> Picture:
    """The picture in a file. Raises UnusableError: no image, cut short, too small, too large, without a colour."""
    import numpy as np
    from PIL import Image

    if not content:
        raise UnusableError("empty file")
    try:
        image: Any = Image.open(io.BytesIO(content), formats=FORMATS)
        _require_size(image.width, image.height)
        return Picture(np.asarray(_colours(image)), getattr(image, "n_frames", 1) > 1)
    except (UnusableError, MemoryError):
        raise
    except Exception:  # a decoder raises whatever a broken file leads it into
        raise UnusableError("image that cannot be read") from None


def _require_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise UnusableError(f"image of fewer than {MIN_SIDE} pixels a side")
    if width * height > MAX_PIXELS:
        raise UnusableError(f"image of more than {MAX_PIXELS >> 20} million pixels")


def _colours(image: Any) -> Any:
    """The image in RGB: decoded whole, turned as its EXIF says, on white where it is transparent."""
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image.convert("RGB")


def _eight_bits(image: Any) -> Any:
    """Of a grey image of 16 bits."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise UnusableError("image of more than 16 bits a pixel")
    return Image.fromarray(np.round(values / 257.0).astype(np.uint8))


def fitted(
    pixels: np.ndarray, resolution: int, place: tuple[float, float] = (0.5, 0.5), *, flip: bool = False
) -> Fitted:
    """The square that a model of this resolution sees: the shorter side is brought to it, the longer one is cut.

    pixels: uint8 [H, W, 3]. place: of the crop, from top and left, as shares of what is cut: (0.5, 0.5) is the centre.
    flip: mirrored after the crop; time_ids say where the crop lies before it.
    """
    import numpy as np
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = resolution / min(height, width)
    size = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    if size != (width, height):
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    top, left = (round((side - resolution) * share) for side, share in zip(reversed(size), place, strict=True))
    square = pixels[top : top + resolution, left : left + resolution]
    square = np.ascontiguousarray(square[:, ::-1] if flip else square)
    return Fitted(square, (height, width, top, left, resolution, resolution))
