"""Rendered shapes as a data set: drawn by the seed alone, splits apart, scenes and sentences held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privlm.config import defaults
from privlm.diffusion import captions
from privlm.diffusion.image_rows import ImageRow, Images
from privlm.diffusion.image_schema import MAX_HELD_OUT, ImagesConfig
from privlm.diffusion.images import content_of, image_inputs, load_images
from privlm.diffusion.scenes import COUNTS, PALETTE, SHAPES
from privlm.diffusion.shapes_data import held_out_scenes

pytestmark = pytest.mark.torch_free


def shapes(**changes: Any) -> Images:
    given = {"num_train": 96, "num_validation": 20, "num_test": 108} | changes
    return load_images(defaults(ImagesConfig, "data", "shapes", **given))


def everything(images: Images) -> list[ImageRow]:
    return [*images.train, *images.validation, *images.test]


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    first, again, other = shapes(), shapes(), shapes(seed=1)
    assert everything(first) == everything(again)
    assert all(np.array_equal(a.picture(), b.picture()) for a, b in zip(first.train, again.train, strict=True))
    assert not {row.digest for row in everything(first)} & {row.digest for row in everything(other)}


def test_more_images_begin_with_those_of_fewer() -> None:
    assert shapes(num_train=200).train[:96] == shapes().train
    assert shapes(num_train=200).test == shapes().test


def test_no_two_images_of_any_split_share_scene_and_layout() -> None:
    rows = everything(shapes())
    assert len({(row.scene, row.layout) for row in rows}) == len(rows) == 224
    assert len({row.layout for row in rows}) == len(rows)
    assert len({row.digest for row in rows}) == len(rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_the_scenes_is_held_out_and_each_word_still_trained(seed: int) -> None:
    images = shapes(seed=seed)
    trained = {row.scene for row in images.train}
    assert len(images.held_out) == 6 >= 0.1 * 54
    assert not trained & images.held_out
    assert not {row.scene for row in images.validation} & images.held_out
    assert {scene.color for scene in trained if scene} == set(PALETTE)
    assert {scene.shape for scene in trained if scene} == set(SHAPES)
    assert {scene.count for scene in trained if scene} == set(COUNTS)


def test_the_test_shows_every_scene_equally_often_and_marks_those_held_out() -> None:
    images = shapes()
    counts: dict[Any, int] = {}
    for row in images.test:
        counts[row.scene] = counts.get(row.scene, 0) + 1
        assert row.is_held_out == (row.scene in images.held_out)
    assert set(counts.values()) == {2}
    assert len(counts) == 54


def test_as_many_scenes_as_asked_for_can_be_held_out_at_any_seed() -> None:
    for seed in range(40):
        assert len(held_out_scenes(MAX_HELD_OUT, seed)) == 41
    assert held_out_scenes(0.0, 0) == frozenset()
    assert held_out_scenes(0.1, 0) != held_out_scenes(0.1, 1)


@pytest.mark.parametrize(
    ("style", "sentence", "templates"),
    [("plain", captions.narrative, captions.NARRATIVE), ("unseen", captions.unseen, captions.UNSEEN)],
)
def test_a_template_of_sentences_is_kept_for_the_test(style: str, sentence: Any, templates: Any) -> None:
    images = shapes(caption_style=style, num_train=300)
    last = len(templates) - 1
    used = {next(t for t in range(len(templates)) if sentence(row.scene, t) == row.text) for row in images.train}
    assert used == set(range(last))
    assert all(row.text == sentence(row.scene, last) for row in images.test)
    assert all(row.prompt == captions.keyword(row.scene) for row in everything(images) if row.scene)


def test_what_was_rendered_is_told_and_is_what_the_name_promises() -> None:
    data = defaults(ImagesConfig, "data", "shapes", num_train=10, num_validation=0, num_test=3)
    assert image_inputs(data) == {}
    images = load_images(data)
    assert images.notes == [
        "rendered shapes, nobody's data; 6 of 54 scenes held out of training, sentences in unseen words"
    ]
    found = content_of(data)
    assert (found.name, found.known, sorted(found.splits)) == ("shapes", True, ["test", "train"])
    data.seed = 5
    assert content_of(data).digest != found.digest
