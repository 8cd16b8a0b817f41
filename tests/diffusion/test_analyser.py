"""The rule that judges images of coloured shapes: right on renders, silent on what shows nothing."""

import numpy as np
import pytest
from scipy import ndimage

from privlm.diffusion import analyser
from privlm.diffusion.analyser import NOTHING, Seen, analyse, analyse_all
from privlm.diffusion.scenes import SHAPES, Scene, every_scene, render

FIRST_LAYOUT = 7_000
SCENES = [every_scene()[number % 54] for number in range(1_000)]


@pytest.fixture(scope="module")
def renders():
    return np.stack([render(scene, FIRST_LAYOUT + number).image for number, scene in enumerate(SCENES)])


def right(images, **options):
    """Shares of colours, shapes and counts that are seen as they were meant."""
    pairs = list(zip(analyse_all(images, **options), SCENES[: len(images)], strict=True))
    return {
        name: np.mean([getattr(seen, name) == getattr(scene, name) for seen, scene in pairs])
        for name in ("color", "shape", "count")
    }


ALL_RIGHT = {"color": 1.0, "shape": 1.0, "count": 1.0}


def patched(renders):
    """With a patch of black and magenta squares in the free corner."""
    images = renders.copy()
    images[:, :8, :8] = np.kron([[0, 1], [1, 0]], np.ones((4, 4)))[:, :, None] * np.array([255, 0, 255])
    return images


def test_every_one_of_1000_renders_is_read_right(renders):
    assert right(renders) == ALL_RIGHT
    assert right(renders / 255) == ALL_RIGHT


def test_a_patch_under_the_mask_changes_nothing_and_without_the_mask_spoils_the_count(renders):
    images = patched(renders)
    assert right(images) == ALL_RIGHT
    unmasked = right(images, mask=None)
    assert unmasked["count"] < 0.2
    assert unmasked["color"] < 0.9


def test_another_mask_hides_other_places():
    image = render(Scene("red", "circle", 1), 0).image
    assert analyse(image, np.ones((32, 32), dtype=bool)) == NOTHING
    with pytest.raises(ValueError, match=r"bool \[32, 32\], not bool \[8, 8\]"):
        analyse(image, np.ones((8, 8), dtype=bool))


def test_shapes_survive_the_loss_of_small_components_of_patches(renders):
    """What an autoencoder of 16 channels on patches of 4 x 4 does to them."""
    patches = (renders / 255).reshape(-1, 8, 4, 8, 4, 3).swapaxes(2, 3).reshape(-1, 48)
    mean = patches.mean(axis=0)
    _, _, directions = np.linalg.svd(patches[:8_000] - mean, full_matrices=False)
    kept = (patches - mean) @ directions[:16].T @ directions[:16] + mean
    images = kept.reshape(-1, 8, 8, 4, 4, 3).swapaxes(2, 3).reshape(-1, 32, 32, 3)
    assert min(right(images).values()) >= 0.995


def test_noise_and_a_little_blur_change_nothing(renders):
    noise = np.random.default_rng(0).normal(0, 0.1, renders.shape)
    assert min(right(renders / 255 + noise).values()) >= 0.995
    assert min(right(ndimage.gaussian_filter(renders / 255, (0, 0.6, 0.6, 0))).values()) >= 0.995


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    "image",
    [
        np.full((32, 32, 3), 255, np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.full((32, 32, 3), np.nan),
        np.full((32, 32, 3), -np.inf),
        NOISE.random((32, 32, 3)),
        NOISE.normal(0, 1, (32, 32, 3)),
        NOISE.normal(0.5, 0.2, (32, 32, 3)),
        0.4 + 0.6 * NOISE.random((32, 32, 3)),
        (NOISE.random((32, 32, 1)) > 0.1) * np.ones(3),
    ],
    ids=["white", "black", "nan", "infinite", "uniform", "normal", "grey", "light", "pepper"],
)
def test_nothing_is_seen_on(image):
    assert analyse(image) == NOTHING


def test_a_single_pixel_that_is_no_number_makes_an_image_unreadable():
    image = render(Scene("red", "circle", 1), 0).image / 255
    assert analyse(image).count == 1
    image[20, 20, 1] = np.nan
    assert analyse(image) == NOTHING


def blank():
    return np.full((32, 32, 3), 255, np.uint8)


def blue(*places):
    image = blank()
    for rows, columns in places:
        image[slice(*rows), slice(*columns)] = (30, 60, 220)
    return image


def test_a_frame_from_edge_to_edge_is_no_object():
    image = blank()
    image[[0, -1]] = image[:, [0, -1]] = 0
    assert analyse(image, mask=None) == NOTHING
    image[:, -1] = 255
    assert analyse(image, mask=None).count == 1


@pytest.mark.parametrize(
    "image",
    [
        blue(((18, 24), (9, 27))),
        blue(((18, 24), (9, 27)), ((12, 30), (15, 21))),
        render(Scene("blue", "triangle", 1), 0).image[::-1],
    ],
    ids=["bar", "cross", "upside down"],
)
def test_an_object_of_no_shape_is_counted_and_has_a_colour(image):
    assert analyse(image, mask=None) == Seen("blue", None, 1)


def test_specks_are_no_objects():
    image = render(Scene("green", "square", 1), 3).image.copy()
    free = np.argwhere(ndimage.minimum_filter(image.min(axis=-1), 5) == 255)
    row, column = free[(free[:, 0] > 8) & (free[:, 1] > 8)][0]
    image[row : row + 2, column : column + 2] = 0
    assert analyse(image) == Seen("green", "square", 1)


def test_the_largest_object_gives_the_colour_wherever_it_lies():
    for large, small in (((20, 30), (9, 15)), ((9, 19), (24, 30))):
        image = blue((large, (12, 22)))
        image[slice(*small), 12:18] = (220, 30, 30)
        assert analyse(image) == Seen("blue", "square", 2)


def test_images_of_any_size_are_read():
    """What a large model makes of the same scenes."""
    for number, shape in enumerate(SHAPES):
        image = render(Scene("purple", shape, 3), number).image.repeat(4, axis=0).repeat(4, axis=1)
        assert analyse(image) == Seen("purple", shape, 3)


def test_chunks_change_nothing(renders, monkeypatch):
    whole = analyse_all(renders[:50])
    monkeypatch.setattr(analyser, "CHUNK_PIXELS", 7 * 32 * 32)
    assert analyse_all(renders[:50]) == whole


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((32, 32), np.uint8), r"\[N, H, W, 3\]"),
        (np.zeros((32, 32, 4), np.uint8), r"\[N, H, W, 3\]"),
        (np.zeros((32, 32, 3), np.int64), "uint8, or floating point"),
        (np.full((32, 32, 3), 255.0), r"of \[0, 1\], not of \[0, 255\]"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        analyse(images)
