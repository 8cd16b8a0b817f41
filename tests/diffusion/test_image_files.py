"""Image files of every kind become upright pixels on white; what is none is refused by its problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.image_folders import BLUE, RED, file_of, pixels

from privlm.diffusion.image_files import UnusableError, fitted, read_picture

pytestmark = pytest.mark.torch_free

WHITE = (255, 255, 255)
PLAIN = Image.fromarray(pixels())


def test_a_plain_file_keeps_its_pixels() -> None:
    found = read_picture(file_of(pixels()))
    assert np.array_equal(found.pixels, pixels())
    assert not found.is_animated


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_forms_show_nearly_the_same(form: str) -> None:
    found = read_picture(file_of(PLAIN.quantize(8) if form == "GIF" else PLAIN, form)).pixels
    assert np.abs(found.astype(int) - pixels())[1:].mean() < 12


def test_four_inks_become_three_lights() -> None:
    found = read_picture(file_of(PLAIN.convert("CMYK"), "JPEG", quality=95)).pixels
    assert np.abs(found[2, 4].astype(int) - RED).max() < 40
    assert np.abs(found[14, 20].astype(int) - BLUE).max() < 40


def test_what_is_transparent_is_white() -> None:
    half = np.dstack([pixels(), np.full((16, 24), 255, np.uint8)])
    half[:, 12:, 3] = 0
    for found in (half, Image.fromarray(half).convert("LA")):
        seen = read_picture(file_of(found)).pixels
        assert (seen[:, 12:] == WHITE).all()
        assert (seen[1:, :12] != WHITE).any(axis=2).all()


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    image = PLAIN.quantize(4)
    clear = image.getpixel((20, 14))
    seen = read_picture(file_of(image, transparency=clear)).pixels
    assert (seen[14, 20] == WHITE).all()
    assert np.abs(seen[4, 4].astype(int) - RED).max() < 10


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_equal_channels(mode: str) -> None:
    seen = read_picture(file_of(PLAIN.convert(mode))).pixels
    assert seen.shape == (16, 24, 3)
    assert (seen == seen[..., :1]).all()


def test_sixteen_bits_become_the_eight_highest() -> None:
    grey = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    seen = read_picture(file_of(grey)).pixels[..., 0]
    assert np.abs(seen - grey / 257.0).max() <= 0.5
    assert (seen.min(), seen.max()) == (0, 255)


def test_a_picture_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter, clockwise
    seen = read_picture(file_of(PLAIN, "JPEG", exif=exif, quality=95)).pixels
    assert seen.shape == (24, 16, 3)
    assert np.abs(seen[20, 2].astype(int) - BLUE).max() < 40  # from the lower right to the lower left


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    found = read_picture(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.is_animated
    assert np.abs(found.pixels.astype(int) - RED).max() < 10


FLOATS: Any = Image.fromarray(np.ones((16, 16), np.float32))
BAD = [
    (b"", "empty file"),
    (b"no image", "image that cannot be read"),
    (file_of(pixels(size=(64, 64)))[:-40], "image that cannot be read"),
    (file_of(PLAIN, "JPEG")[:300], "image that cannot be read"),
    (file_of(pixels(size=(1, 1))), "image of fewer than 8 pixels a side"),
    (file_of(pixels(size=(64, 7))), "image of fewer than 8 pixels a side"),
    (file_of(FLOATS, "TIFF"), "image of more than 16 bits a pixel"),
    (file_of(np.full((16, 16), 70000, np.int32), "TIFF"), "image of more than 16 bits a pixel"),
    (file_of(Image.new("1", (9000, 9000))), "image of more than 64 million pixels"),
]


@pytest.mark.parametrize(("content", "problem"), BAD)
def test_what_is_no_image_to_use_is_refused_by_its_problem(content: bytes, problem: str) -> None:
    with pytest.raises(UnusableError, match=f"^{problem}$"):
        read_picture(content)


def test_the_shorter_side_is_brought_to_the_resolution_and_the_longer_one_cut() -> None:
    found = fitted(pixels(size=(48, 24)), 12)
    assert found.pixels.shape == (12, 12, 3)
    assert found.time_ids == (24, 48, 0, 6, 12, 12)
    assert np.abs(found.pixels[10, 10].astype(int) - BLUE).max() < 10  # cut at the centre: it has the blue corner


def test_a_place_says_where_is_cut_and_a_flip_mirrors_what_is_left() -> None:
    image = pixels(size=(48, 24))
    left, right = fitted(image, 24, (0, 0)), fitted(image, 24, (0, 1))
    assert np.array_equal(left.pixels, image[:, :24])
    assert np.array_equal(right.pixels, image[:, 24:])
    assert right.time_ids == (24, 48, 0, 24, 24, 24)
    assert np.array_equal(fitted(image, 24, (0, 1), flip=True).pixels, image[:, :23:-1])


def test_a_picture_of_the_right_size_is_untouched_and_a_small_one_is_enlarged() -> None:
    square = pixels(size=(32, 32))
    assert np.array_equal(fitted(square, 32).pixels, square)
    assert fitted(pixels(size=(9, 8)), 32).pixels.shape == (32, 32, 3)
