"""`privlm build shapes`: the same bytes on two runs, read back as they were rendered, by us and by Hugging Face."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.image_folders import load_folder

from privlm.cli import main
from privlm.config import defaults
from privlm.diffusion.image_schema import ImagesConfig
from privlm.diffusion.images import load_images
from privlm.files import digests_of

WORDS = ["num_train=30", "num_validation=4", "num_test=54", "seed=3"]
HEAVY = ("torch", "transformers", "diffusers", "datasets", "PIL", "matplotlib")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "shapes"
    assert main(["build", "shapes", str(folder), *WORDS]) == 0
    return folder


@pytest.mark.torch_free
def test_two_runs_write_the_same_bytes(built: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "again"
    assert main(["build", "shapes", str(folder), *WORDS]) == 0
    assert (
        capsys.readouterr().out == f"{folder}: 30 train, 4 validation, 54 test; 6 of 54 scenes held out of training\n"
    )
    assert digests_of(folder) == digests_of(built)
    assert len(digests_of(folder)) == 88 + 3


@pytest.mark.torch_free
def test_what_was_built_is_read_back_as_it_was_rendered(built: Path) -> None:
    given = {"num_train": 30, "num_validation": 4, "num_test": 54, "seed": 3}
    rendered = load_images(defaults(ImagesConfig, "data", "shapes", **given))
    read = load_folder(built)
    for split in ("train", "validation", "test"):
        for one, same in zip(rendered.split(split), read.split(split), strict=True):
            assert (one.text, one.prompt, one.scene) == (same.text, same.prompt, same.scene)
            assert np.array_equal(one.picture(), same.picture())
    shown = {row.scene for row in read.train}
    assert read.held_out == {row.scene for row in rendered.test} - shown >= rendered.held_out


@pytest.mark.torch_free
def test_each_line_says_what_is_to_be_seen_and_where(built: Path) -> None:
    lines = [json.loads(line) for line in (built / "test" / "metadata.jsonl").read_text().splitlines()]
    assert list(lines[0]) == [
        "file_name", "text", "prompt", "color", "shape", "count", "boxes", "split", "layout", "is_held_out",
    ]  # fmt: skip
    assert all(len(line["boxes"]) == line["count"] for line in lines)
    assert {line["split"] for line in lines} == {"test"}
    assert sum(line["is_held_out"] for line in lines) == 6


@pytest.mark.medium
def test_hugging_faces_imagefolder_reads_it(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset("imagefolder", data_dir=str(built), cache_dir=str(tmp_path))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 30, "validation": 4, "test": 54}
    row = found["test"][0]
    assert row["image"].size == (32, 32)
    assert row["prompt"].startswith(f"{row['color']}, {row['shape']}, ")


@pytest.mark.torch_free
def test_num_is_of_all_splits(tmp_path: Path) -> None:
    assert main(["build", "shapes", str(tmp_path / "new"), "num=23"]) == 0
    images = load_folder(tmp_path / "new")
    assert [len(images.train), len(images.validation), len(images.test)] == [19, 2, 2]


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shapes", "FOLDER", "numb=3"], "Key 'numb' not in 'ImagesConfig'"),
        (["shapes", "FOLDER", "num=9"], "num=9: give a whole number of images, 10 or more"),
        (["shapes", "FOLDER", "num=many"], "num=many: give a whole number of images"),
        (["shapes", "FOLDER", "num=30", "num_test=3"], "num=30 is of all splits, and num_test of one"),
        (["shapes", "FOLDER", "caption_style=long"], "caption_style: 'long' is not one of plain, unseen"),
        (["shapes", "FOLDER", "path=x"], "shapes are rendered here"),
        (["shape", "FOLDER"], "no builder 'shape'; did you mean shapes or shapes_cnn?"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert main(["build", *(word.replace("FOLDER", str(tmp_path / "new")) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch_free
@pytest.mark.medium
def test_the_list_of_builders_needs_nothing_heavy() -> None:
    probe = "import sys\nfrom privlm.cli import main\nmain(['build', '--help'])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    listed = [line.split() for line in done.stdout.splitlines()]
    assert any(words[:4] == ["shapes", "Rendered", "shapes", "with"] for words in listed)
    assert any(words[:1] == ["lines"] for words in listed)
    assert not set(done.stderr.split()) & set(HEAVY)
