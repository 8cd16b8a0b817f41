"""What the fields of the group `data` say together."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from privlm.config import defaults
from privlm.diffusion.image_schema import CAPTION_STYLES, ImagesConfig
from privlm.diffusion.shapes_data import SENTENCES
from privlm.schema import problems

pytestmark = pytest.mark.torch_free


def found(name: str, **changes: object) -> list[str]:
    return problems(OmegaConf.structured(defaults(ImagesConfig, "data", name, **changes)), None, "data.")


def test_the_shipped_choices_have_no_problem() -> None:
    assert found("shapes") == found("surd") == found("imagefolder", path="FOLDER") == []
    assert found("surd", crop="random", num_views=4) == []


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("imagefolder", {}, "data.path: name the folder of images, data.path=FOLDER"),
        ("shapes", {"path": "x"}, "shapes are rendered here; choose data=imagefolder"),
        ("shapes", {"num_test": None}, "data.num_test: say how many images are rendered"),
        ("shapes", {"num_train": 0}, "data.num_train must be greater than 0"),
        ("shapes", {"heldout_share": 0.8}, "data.heldout_share must be at least 0 and at most 0.75"),
        ("shapes", {"caption_style": "unsen"}, "did you mean 'unseen'?"),
        ("shapes", {"seed": -1}, "data.seed must be at least 0"),
        ("surd", {"crop": "random"}, "say how many crops of each image are drawn, e.g. data.num_views=4"),
        ("surd", {"num_views": 2}, "data.num_views=2 is of data.crop=random"),
        ("surd", {"max_bad_share": 1.0}, "data.max_bad_share must be at least 0 and less than 1"),
        ("surd", {"text_column": "file_name"}, "names a column of captions, too"),
    ],
)
def test_what_cannot_be_is_one_sentence_that_names_the_field(
    name: str, changes: dict[str, object], problem: str
) -> None:
    (sentence,) = found(name, **changes)
    assert problem in sentence


def test_styles_of_captions_are_those_that_can_be_made() -> None:
    assert set(SENTENCES) == set(CAPTION_STYLES)
