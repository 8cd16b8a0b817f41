"""The schema of the group `data` for images with captions: rendered shapes, or a folder of a user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.data.schema import QUOTING
from privlm.schema import setting

SOURCES = ("shapes", "folder")
CROPS = ("centre", "random")
CAPTION_STYLES = ("plain", "unseen")

MAX_HELD_OUT = 0.75
"""Share of the scenes that can be held out with every colour, shape and number left in training, whatever the draw."""


@dataclass
class ImagesConfig:
    """Images, each with a sentence (`text`) and keywords (`prompt`); see privlm.diffusion.images.

    resolution: pixels of a side, to which the shorter side is brought before the crop. flip: mirrored at random.
    num_views: draws of a random crop that are encoded of each image; a step takes one of them.
    num_*: of rendered shapes, how many are made; of a folder, at most how many are taken (null: all that name the
    split), and where no row names a split, how many are drawn to validate and to test.
    max_bad_share: of the rows that cannot be used; beyond it the folder is refused.
    heldout_share: of the scenes, at least, that no training image shows. caption_style: of the sentences of shapes, in
    plain words or in words that no base was taught. seed: of rendering, of drawn splits and of crops.
    """

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    source: str = setting(options=SOURCES)
    path: str | None = setting(same_run=True)  # goes before the hub; its fingerprint stands for it
    hub_id: str | None = setting(instead_of=("path",), not_with=("path",))
    resolution: int = setting(at_least=8)
    crop: str = setting(options=CROPS)
    flip: bool = MISSING
    num_views: int | None = setting(at_least=2)
    file_column: str = MISSING
    text_column: str = MISSING
    prompt_column: str = MISSING
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    max_bad_share: float = setting(at_least=0, below=1)
    num_train: int | None = setting(above=0)
    num_validation: int | None = setting(at_least=0)
    num_test: int | None = setting(at_least=0)
    heldout_share: float = setting(at_least=0, at_most=MAX_HELD_OUT)
    caption_style: str = setting(options=CAPTION_STYLES)
    seed: int = setting(at_least=0)
    licence: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = []
        if self.crop == "random" and self.num_views is None:
            problems.append("data.crop=random: say how many crops of each image are drawn, e.g. data.num_views=4")
        if self.crop == "centre" and self.num_views is not None:
            problems.append(f"data.num_views={self.num_views} is of data.crop=random: a centre crop has one view")
        return problems + (_shapes if self.source == "shapes" else _folder)(self)


def _shapes(data: Any) -> list[str]:
    problems = []
    if data.path is not None or data.hub_id is not None:
        problems.append("data.path, data.hub_id: shapes are rendered here; choose data=imagefolder for your own images")
    absent = [name for name in ("num_train", "num_validation", "num_test") if getattr(data, name) is None]
    return problems + [f"data.{name}: say how many images are rendered" for name in absent]


def _folder(data: Any) -> list[str]:
    columns = (data.file_column, data.text_column, data.prompt_column)
    problems = []
    if data.path is None and data.hub_id is None:
        problems.append("data.path: name the folder of images, data.path=FOLDER")
    if data.file_column in columns[1:]:
        problems.append(f"data.file_column={data.file_column} names a column of captions, too")
    return problems
