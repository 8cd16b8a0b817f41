"""Pictures of many images with their prompts."""

import json

import numpy as np
import pytest
from PIL import Image

from privlm.diffusion.captions import keyword, narrative
from privlm.diffusion.grids import COLUMNS, draw_grid, write_grid
from privlm.diffusion.scenes import every_scene, render
from privlm.report.look import ON_WHITE

SCENES = every_scene()[:8]
IMAGES = np.stack([render(scene, number).image for number, scene in enumerate(SCENES)])
PROMPTS = [keyword(scene) for scene in SCENES]


def test_each_image_stands_over_its_prompt_and_verdicts_colour_it():
    figure = draw_grid(IMAGES, PROMPTS, rights=[True, False] * 4, title="step 100")
    axes = [one for one in figure.axes if one.images]
    assert len(axes) == 8
    assert np.array_equal(axes[3].images[0].get_array(), IMAGES[3].astype(np.float32) / np.float32(255))
    assert axes[0].get_xlabel().replace("\n", " ").startswith("red, circle, one, white background")
    assert [one.xaxis.label.get_color() for one in axes[:2]] == [ON_WHITE.good, ON_WHITE.warn]
    assert len(figure.axes) == 2 * COLUMNS
    assert figure.get_suptitle() == "step 100"


def test_few_images_take_no_more_columns_than_they_are():
    assert len(draw_grid(IMAGES[:2], PROMPTS[:2]).axes) == 2


def test_a_picture_comes_with_its_whole_prompts_and_is_the_same_each_time(tmp_path):
    prompts = [*(narrative(scene, 0) for scene in SCENES[:7]), "a long prompt " * 40 + "with $signs_ and\nlines"]
    for name in ("one", "two"):
        figure = draw_grid(IMAGES, prompts)
        write_grid(tmp_path / f"{name}.png", figure, prompts, seeds=list(range(8)), step=100)
    told = json.loads((tmp_path / "one.json").read_text())
    assert told["prompts"] == prompts
    assert (told["seeds"], told["step"]) == (list(range(8)), 100)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (220, 30, 30) in colours


def test_broken_images_are_shown_grey_and_prompts_may_be_empty():
    figure = draw_grid(np.full((1, 32, 32, 3), np.nan), [""])
    assert np.asarray(figure.axes[0].images[0].get_array()).max() == 0.5


def test_each_image_needs_a_prompt():
    with pytest.raises(ValueError, match="8 images, 2 prompts, 8 verdicts"):
        draw_grid(IMAGES, PROMPTS[:2])
