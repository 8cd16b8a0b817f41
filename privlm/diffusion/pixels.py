"""Images as judges take them: any of bytes and floats, as floats of [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np

from privlm.diffusion.scenes import PATCH, SIZE

LARGEST = 16.0
"""No float image of [0, 1] strays so far; one of [0, 255] does."""


def unit_pixels(images: Any) -> np.ndarray:
    """Images uint8, or floating point of [0, 1], [N, H, W, 3], as float32; floats outside are clipped, and what is not
    finite becomes NaN.

    Raises ValueError for other shapes and dtypes, and for floats that look like bytes.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"images must be [N, H, W, 3] with N, H and W above 0, not {list(images.shape)}")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8, or floating point of [0, 1], not {images.dtype}")
    finite = np.where(np.isfinite(images), images, np.nan)
    if np.nanmax(np.abs(finite), initial=0) > LARGEST:
        raise ValueError("floating point images must hold values of [0, 1], not of [0, 255]")
    return np.clip(finite, 0, 1).astype(np.float32)


def patch_mask(height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """The corner that no layout puts anything into, bool [height, width]: where a patch may lie that is no object."""
    left, top, right, bottom = PATCH
    mask = np.zeros((height, width), dtype=bool)
    mask[top * height // SIZE : bottom * height // SIZE, left * width // SIZE : right * width // SIZE] = True
    return mask
