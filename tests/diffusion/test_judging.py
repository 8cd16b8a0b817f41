"""Accuracies of sets of images by both judges."""

import numpy as np
import pytest

from privlm.diffusion.analyser import NOTHING, Seen
from privlm.diffusion.judging import Judgement, judge, verdicts
from privlm.diffusion.scenes import Scene, every_scene, render

SCENES = every_scene()


@pytest.fixture(scope="module")
def renders():
    return np.stack([render(scene, 40_000 + number).image for number, scene in enumerate(SCENES)])


def test_renders_show_what_they_were_made_of(renders):
    found = judge(renders, SCENES).estimates()
    names = ["acc_color", "acc_shape", "acc_count", "acc_all"]
    assert list(found) == [*names, *(f"{name}_cnn" for name in names), "judges_disagree"]
    assert [found[name].value for name in names] == [1.0] * 4
    assert found["acc_all_cnn"].value > 0.95
    assert found["judges_disagree"].value == pytest.approx(1 - found["acc_all_cnn"].value)
    assert found["acc_all"].n == 54
    assert found["acc_all"].ci_low < 1 == found["acc_all"].ci_high


def test_each_question_is_judged_by_itself():
    asked = [Scene("red", "circle", 1)] * 5
    seen = [
        Seen("red", "circle", 1), Seen("blue", "circle", 1), Seen("red", None, 1), Seen("red", "circle", 2), NOTHING
    ]  # fmt: skip
    found = verdicts(seen, asked)
    assert found.color.tolist() == [True, False, True, True, False]
    assert found.shape.tolist() == [True, True, False, True, False]
    assert found.count.tolist() == [True, True, True, False, False]
    assert found.all.tolist() == [True, False, False, False, False]
    assert {name: one.value for name, one in found.accuracies().items()} == {
        "acc_color": 0.6, "acc_shape": 0.6, "acc_count": 0.6, "acc_all": 0.2
    }  # fmt: skip


def test_judges_disagree_where_they_see_something_else_though_both_be_wrong():
    asked = [Scene("red", "circle", 1)] * 3
    rule = verdicts([Seen("red", "circle", 1), Seen("blue", "circle", 1), NOTHING], asked)
    cnn = verdicts([Seen("red", "circle", 1), Seen("green", "circle", 1), Seen("red", "circle", 1)], asked)
    found = Judgement(rule, cnn)
    assert found.disagree.tolist() == [False, True, True]
    assert found.estimates()["judges_disagree"].value == pytest.approx(2 / 3)


def test_images_of_one_prompt_are_one_unit(renders):
    shown = np.repeat(renders[:10], 4, axis=0)
    asked = [scene for scene in [*SCENES[:5], *SCENES[20:25]] for _ in range(4)]
    alone = judge(shown, asked).estimates()["acc_all"]
    together = judge(shown, asked, units=np.repeat(np.arange(10), 4)).estimates()["acc_all"]
    assert (alone.value, alone.n) == (0.5, 40)
    assert (together.value, together.n) == (0.5, 10)
    assert together.ci_high - together.ci_low > 1.5 * (alone.ci_high - alone.ci_low)


def test_both_judges_are_blind_under_the_mask_alone(renders):
    patched = renders.copy()
    patched[:, :8, :8] = (20, 20, 20)
    masked, clean, open_ = judge(patched, SCENES), judge(renders, SCENES), judge(patched, SCENES, mask=None)
    assert masked.rule.seen == clean.rule.seen
    assert masked.cnn.seen == clean.cnn.seen
    assert open_.rule.count.mean() < 0.2
    assert open_.cnn.count.mean() < clean.cnn.count.mean()


def test_blank_and_broken_images_are_wrong_and_no_error():
    images = np.stack([np.ones((32, 32, 3)), np.full((32, 32, 3), np.nan)])
    found = judge(images, SCENES[:2])
    assert found.rule.seen == found.cnn.seen == (NOTHING, NOTHING)
    assert not found.rule.all.any()


def test_each_image_needs_a_scene(renders):
    with pytest.raises(ValueError, match="54 images and 3 scenes"):
        judge(renders, SCENES[:3])
    with pytest.raises(ValueError, match="0 images and 0 scenes"):
        judge(renders[:0], [])
