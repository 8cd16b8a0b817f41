"""Figures of images whose truth is known: renders, and renders of something else."""

from __future__ import annotations

import numpy as np
import pytest
from privlm.runners.sur_adapter.measure import Drawn, Measures, gap_closed

from privlm.diffusion.judging import judge
from privlm.diffusion.scenes import every_scene, render
from privlm.job import Stage
from privlm.schema import defaults
from privlm.training.schema import TrainerConfig

SCENES = every_scene()
NAMES = [f"{scene.color} {scene.shape} {scene.count}" for scene in SCENES]


def drawn(num_right: int, *, layout: int = 1, judged: bool = True) -> Drawn:
    """The first so many images show their scene; the others one of other colour, shape and count."""
    shown = [scene if place < num_right else SCENES[(place + 22) % 54] for place, scene in enumerate(SCENES)]
    images = np.stack([render(scene, layout + place).image for place, scene in enumerate(shown)])
    held_out = np.arange(54) >= 48
    return Drawn(images, NAMES, NAMES, held_out, judge(images, SCENES) if judged else None)


class Extractor:
    """Mean colours."""

    name = "colours"

    def __call__(self, images):
        return np.asarray(images, dtype=np.float64).mean(axis=(1, 2)) / 255


@pytest.fixture
def stage():
    with Stage.in_memory(trainer=defaults(TrainerConfig, "trainer", "single")) as stage:
        yield stage


def measures() -> Measures:
    real = np.stack([render(scene, 100 + place).image for place, scene in enumerate(SCENES)])
    return Measures(real, Extractor())


def reported(stage: Stage) -> dict[tuple[str, str], dict]:
    return {(row["split"], row["metric"]): row for row in stage.record(None)["reports"]}


def test_a_system_is_told_by_accuracies_and_distances_and_what_is_held_out_apart(stage):
    found = measures()
    found.system(stage, "narrative", drawn(27))
    rows = reported(stage)
    assert rows["narrative", "acc_all"]["value"] == 0.5
    assert rows["narrative", "acc_all"]["ci_low"] < 0.5 < rows["narrative", "acc_all"]["ci_high"]
    assert rows["narrative_held_out", "acc_all"]["value"] == 0.0
    assert rows["narrative_held_out", "acc_all"]["n"] == 6
    assert {"kid[colours]", "fid[colours]"} <= {name for _, name in rows}
    assert "acc_all_cnn" in {name for _, name in rows}
    assert any(note.startswith("clip_score: n/a (no CLIP model") for note in found.notes())


def test_images_of_nobodys_scene_have_no_accuracy_and_it_is_said(stage):
    found = measures()
    found.system(stage, "narrative", drawn(54, judged=False))
    found.pair(stage, "narrative", "over_base", drawn(54, judged=False), drawn(54, judged=False))
    found.gap(stage, "narrative", drawn(54, judged=False), drawn(3), drawn(54))
    assert not [name for _, name in reported(stage) if name.startswith(("acc", "win", "gap"))]
    assert "accuracies: n/a (the data name no scenes)" in found.notes()
    assert "gap_closed: n/a (the data name no scenes)" in found.notes()


def test_too_few_images_give_no_distance_and_it_is_said(stage):
    found = measures()
    few = Drawn(drawn(54).images[:2], NAMES[:2], NAMES[:2], np.zeros(2, bool))
    found.system(stage, "narrative", few)
    assert not [name for _, name in reported(stage) if "id[" in name]
    assert {note.partition(":")[0] for note in found.notes()} >= {"kid[colours]", "fid[colours]"}


def test_pairs_are_won_lost_and_tied(stage):
    measures().pair(stage, "narrative", "over_base", drawn(40), drawn(20))
    rows = reported(stage)
    assert rows["narrative", "gain_over_base"]["value"] == pytest.approx(20 / 54)
    assert rows["narrative", "win_rate_over_base"]["value"] == pytest.approx((20 + 34 / 2) / 54)


def test_a_system_is_as_good_as_itself(stage):
    measures().pair(stage, "narrative", "over_base", drawn(20), drawn(20))
    assert reported(stage)["narrative", "win_rate_over_base"]["value"] == 0.5


def test_the_gap_that_is_closed_is_a_ratio_with_an_interval():
    found = gap_closed(drawn(30), drawn(10), drawn(50))
    assert found.value == pytest.approx(0.5)
    assert found.ci_low is not None
    assert found.ci_low < 0.5 < found.ci_high


@pytest.mark.parametrize("keyword", [12, 10, 5])
def test_a_gap_of_noise_is_none(stage, keyword):
    found = measures()
    found.gap(stage, "narrative", drawn(30), drawn(10), drawn(keyword))
    assert not reported(stage)
    (note,) = found.notes()
    assert note.startswith("gap_closed: n/a (keywords are right")
