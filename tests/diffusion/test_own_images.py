"""Folders of a user's own images: what is read, how it is split; what cannot be used is counted and named by place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.image_folders import file_of, folder_data, load_folder, pixels, rows, write_rows

from privlm import hub
from privlm.content import notes as content_notes
from privlm.diffusion.images import content_of, image_inputs, load_images
from privlm.diffusion.scenes import Scene
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

ALL = {"max_bad_share": 0.9}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


def test_rows_have_their_captions_and_their_pixels(root: Path) -> None:
    images = load_folder(write_rows(root, rows(3)))
    assert [(row.text, row.prompt) for row in images.train] == [(f"a sentence {i}", f"keyword {i}") for i in range(3)]
    assert np.array_equal(images.train[1].picture(), pixels(1))
    assert images.train[1].where == "metadata.jsonl line 2"
    assert (images.validation, images.test, images.notes) == ([], [], [])


def test_a_table_with_commas_is_read_whatever_its_mark_line_ends_and_quotes(root: Path) -> None:
    write_rows(root, rows(2))
    (root / "metadata.jsonl").unlink()
    table = 'file_name,text,prompt\n0.png,"two, \nred",k0\n1.png,zwei,k1\n'
    (root / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode())
    assert [(row.text, row.prompt) for row in load_folder(root).train] == [("two, red", "k0"), ("zwei", "k1")]


@pytest.mark.parametrize(("kept", "absent"), [("text", "prompt"), ("prompt", "text")])
def test_one_column_of_captions_is_both(root: Path, kept: str, absent: str) -> None:
    write_rows(root, [{name: row[name] for name in ("file_name", kept)} for row in rows(2)])
    images = load_folder(root)
    assert all(row.text == row.prompt == rows(2)[i][kept] for i, row in enumerate(images.train))
    assert images.notes[0] == f"metadata.jsonl has no column {absent}: its {kept} is both, sentence and keywords"


def test_other_names_of_columns_are_given(root: Path) -> None:
    write_rows(root, [{"file_name": "0.png", "caption": "c", "tags": "t"}])
    (row,) = load_folder(root, text_column="caption", prompt_column="tags").train
    assert (row.text, row.prompt) == ("c", "t")
    with pytest.raises(UsageError, match=r"no column 'text' or prompt .*its columns are file_name, caption, tags"):
        load_folder(root)


def test_a_caption_may_lie_beside_each_image(root: Path) -> None:
    (root / "deep").mkdir(parents=True)
    for name, text in (("b.png", b"\xef\xbb\xbftwo\r\nlines\r\n"), ("deep/a.JPG", "犬 🐕".encode())):
        path = root / name
        path.write_bytes(file_of(pixels(), "JPEG" if "JPG" in name else "PNG"))
        path.with_suffix(".txt").write_bytes(text)
    assert [row.text for row in load_folder(root).train] == ["two lines", "犬 🐕"]
    (root / "c.png").write_bytes(file_of(pixels()))
    (root / "d.png").write_bytes(file_of(pixels()))
    (root / "d.txt").write_bytes(b"\xff\xff")
    (root / "b.jpg").write_bytes(file_of(pixels(), "JPEG"))
    assert load_folder(root, **ALL).notes[:3] == [
        "images left out: 1 several images of its name (b.png)",
        "images left out: 1 no caption (c.png)",
        "images left out: 1 caption that is not UTF-8 (d.png)",
    ]


@pytest.mark.parametrize("ending", ["png", "jpg", "WEBP"])
def test_surd_names_its_images_without_their_ending(root: Path, ending: str) -> None:
    names = ["0.5 moon", "1"]
    write_rows(root, [{"file_name": name, "text": "a", "prompt": name} for name in names])
    for number, name in enumerate(names):
        (root / name).unlink()
        (root / f"{name}.{ending}").write_bytes(file_of(pixels(number)))
    images = load_folder(root, "surd", num_test=1)
    assert [row.prompt for row in [*images.train, *images.test]] in (names, names[::-1])
    (root / "1.gif").write_bytes(file_of(pixels(), "GIF"))
    assert (
        "1 several images of its name (metadata.jsonl line 2)" in load_folder(root, "surd", num_test=0, **ALL).notes[0]
    )


# --- what cannot be used --------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], bytes | None, str]] = [
    ({"file_name": "gone.png"}, None, "no image"),
    ({"file_name": "0.png"}, None, "image named twice"),
    ({"file_name": "./0.png"}, None, "image named twice"),
    ({"file_name": ""}, None, "no file_name"),
    ({"file_name": None}, None, "no file_name"),
    ({"file_name": "a\0b.png"}, None, "no file_name"),
    ({"file_name": "x.png"}, b"", "empty file"),
    ({"file_name": "x.png"}, file_of(pixels(size=(64, 64)))[:-40], "image that cannot be read"),
    ({"file_name": "x.png"}, file_of(pixels(size=(1, 1))), "image of fewer than 8 pixels a side"),
    ({"text": ""}, file_of(pixels()), "empty caption"),
    ({"text": " \t\u3000"}, file_of(pixels()), "empty caption"),
    ({"prompt": "\u200b\u2060\ufeff\u3164\ufe0f"}, file_of(pixels()), "empty caption"),
    ({"prompt": None}, file_of(pixels()), "empty caption"),
    ({"text": 7}, file_of(pixels()), "caption that is no text"),
    ({"text": "\ud83d"}, file_of(pixels()), "caption that is no text"),
    ({"text": "a\0b"}, file_of(pixels()), "NUL character in its caption"),
]


@pytest.mark.parametrize(("changes", "content", "problem"), BAD)
def test_a_row_that_cannot_be_used_is_counted_and_named_by_its_place(
    root: Path, changes: dict[str, Any], content: bytes | None, problem: str
) -> None:
    write_rows(root, rows(3))
    bad = {"file_name": "x.png", "text": "SECRET", "prompt": "SECRET"} | changes
    if content is not None:
        (root / "x.png").write_bytes(content)
    with open(root / "metadata.jsonl", "a") as file:
        file.write(json.dumps(bad) + "\n")
    images = load_folder(root, max_bad_share=0.25)
    assert images.notes == [f"images left out: 1 {problem} (metadata.jsonl line 4)"]
    assert len(images.train) == 3
    with pytest.raises(UsageError, match=rf"1 of 4 rows .* more than data.max_bad_share=0.24 allows: 1 {problem}"):
        load_folder(root, max_bad_share=0.24)


def test_of_many_rows_three_are_named(root: Path) -> None:
    write_rows(root, [*rows(6), *({"file_name": f"gone{i}.png", "text": "t", "prompt": "p"} for i in range(4))])
    for i in range(4):
        (root / f"gone{i}.png").unlink()
    line = "metadata.jsonl line"
    assert load_folder(root, **ALL).notes == [f"images left out: 4 no image ({line} 7, {line} 8, {line} 9, ...)"]


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "שלום عالم", "👩‍👩‍👧 family", "两个红色的圆", "a\u200bb", "e\u0301", "\u202eabc"]
)
def test_captions_in_any_script_and_of_any_length_are_kept(root: Path, text: str) -> None:
    images = load_folder(write_rows(root, rows(2, text=text)))
    assert images.train[0].text == text
    assert any("more than 1000 characters" in note for note in images.notes) == (len(text) > 1000)


def test_equal_captions_are_warned_of_and_animations_counted(root: Path) -> None:
    write_rows(root, rows(3, text="same", prompt="same", file_name="0.gif")[:1])
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    (root / "0.gif").write_bytes(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert load_folder(root).notes == ["1 animated images, of each the first frame (metadata.jsonl line 1)"]
    for path in root.iterdir():
        path.unlink()
    write_rows(root, rows(3, text="same", prompt="same"))
    assert load_folder(root).notes == [
        "warning: all captions are equal, so no model learns from them what an image shows"
    ]
    write_rows(root, [row | {"text": row["prompt"]} for row in rows(3)])
    assert load_folder(root).notes == ["warning: sentence and keywords are the same in every row"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png", "C:\\x.png", "C:x.png"])
def test_a_name_that_leads_out_of_the_folder_is_refused(root: Path, name: str) -> None:
    write_rows(root, rows(2))
    with open(root / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": name, "text": "t", "prompt": "p"}) + "\n")
    with pytest.raises(UsageError, match=r"metadata.jsonl line 3: file_name leads out of the folder"):
        load_folder(root, **ALL)


def test_files_may_be_links_as_a_hubs_cache_has_them(root: Path, tmp_path: Path) -> None:
    write_rows(root, rows(2))
    (tmp_path / "blob").write_bytes((root / "0.png").read_bytes())
    (root / "0.png").unlink()
    os.symlink(tmp_path / "blob", root / "0.png")
    assert len(load_folder(root).train) == 2


TABLES = [
    ('{"file_name": "0.png", "text": "t"}\n{broken\n', r"metadata.jsonl line 2: not JSON"),
    ('{"file_name": "0.png", "text": "t"}\n[1]\n', r"metadata.jsonl line 2: not a JSON object"),
    ("", "no examples, the file is empty"),
    ('{"name": "0.png", "text": "t"}\n', "no column 'file_name' .data.file_column."),
    (
        '{"file_name": "0.png", "text": "t", "split": "evil"}\n',
        "line 1: column split must hold train, validation, test",
    ),
]


@pytest.mark.parametrize(("table", "message"), TABLES)
def test_a_malformed_table_is_refused_by_its_line(root: Path, table: str, message: str) -> None:
    write_rows(root, rows(1))
    (root / "metadata.jsonl").write_text(table)
    with pytest.raises(UsageError, match=message):
        load_folder(root)


def test_what_holds_no_images_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match=r"data.path: there is no folder .*images"):
        load_folder(root)
    root.mkdir()
    with pytest.raises(UsageError, match=r"has neither metadata.jsonl nor metadata.csv, nor an image with its caption"):
        load_folder(root)
    write_rows(root, rows(2, split="test"))
    with pytest.raises(UsageError, match="has no image to train on"):
        load_folder(root)
    with pytest.raises(UsageError, match="data: 'sms' is data of another kind; this task takes images"):
        load_images(type("Data", (), {"name": "sms"})())


# --- splits ---------------------------------------------------------------------------------------------------------


def test_folders_and_a_column_name_the_split(root: Path) -> None:
    for split in ("train", "val", "test"):
        write_rows(root / split, rows(2))
    images = load_folder(root)
    assert [len(images.split(name)) for name in ("train", "validation", "test")] == [2, 2, 2]
    assert images.test[0].where == "test/metadata.jsonl line 1"
    write_rows(root, [{"file_name": "train/0.png", "text": "t", "prompt": "p"}])
    with pytest.raises(UsageError, match=r"holds metadata.jsonl and test/metadata.jsonl, which say both"):
        load_folder(root)
    for split in ("train", "val", "test"):
        (root / split / "metadata.jsonl").unlink()
    named = [{"file_name": f"{part}/1.png", "text": "t", "prompt": "p"} for part in ("train", "val", "test")]
    images = load_folder(write_rows(root, [*named, named[0] | {"file_name": "test/0.png", "split": "train"}]))
    assert [len(images.split(name)) for name in ("train", "validation", "test")] == [2, 1, 1]


def test_where_nothing_names_a_split_it_is_drawn_by_content_and_seed(root: Path, tmp_path: Path) -> None:
    write_rows(root, rows(40))
    given = {"num_validation": 5, "num_test": 10}
    images, other = load_folder(root, **given), load_folder(root, seed=1, **given)
    assert [len(images.split(name)) for name in ("train", "validation", "test")] == [25, 5, 10]
    assert {row.digest for row in images.test} != {row.digest for row in other.test}
    moved = load_folder(root.rename(tmp_path / "moved"), **given)
    assert [row.digest for row in moved.test] == [row.digest for row in images.test]
    with pytest.raises(UsageError, match="of 40 images that can be used, none is left to train on"):
        load_folder(tmp_path / "moved", num_validation=30, num_test=10)


def test_copies_of_an_image_never_lie_in_two_splits(root: Path) -> None:
    write_rows(root, rows(30))
    for number in range(15):
        (root / f"{number + 15}.png").write_bytes((root / f"{number}.png").read_bytes())
    for seed in range(5):
        images = load_folder(root, num_test=7, seed=seed)
        assert not {row.digest for row in images.test} & {row.digest for row in images.train}


def test_at_most_as_many_as_asked_for_are_taken(root: Path) -> None:
    write_rows(
        root,
        [*rows(6, split="train"), *(row | {"file_name": f"t{i}.png"} for i, row in enumerate(rows(4, split="test")))],
    )
    images = load_folder(root, num_train=3, num_test=2)
    assert [row.prompt for row in images.train] == ["keyword 0", "keyword 1", "keyword 2"]
    assert len(images.test) == 2


def test_columns_of_scenes_come_back_as_scenes_and_tell_what_is_held_out(root: Path) -> None:
    red = {"color": "red", "shape": "circle", "count": 2}
    blue = {"color": "blue", "shape": "square", "count": 1}
    kinds = [
        red | {"split": "train"},
        red | {"split": "test"},
        blue | {"split": "test"},
        blue | {"color": "pink", "split": "test"},
    ]
    images = load_folder(write_rows(root, [row | kind for row, kind in zip(rows(4), kinds, strict=True)]))
    assert images.train[0].scene == Scene("red", "circle", 2)
    assert [row.is_held_out for row in images.test] == [False, True, False]
    assert images.held_out == {Scene("blue", "square", 1)}
    assert images.test[2].scene is None


# --- what a run knows of them ---------------------------------------------------------------------------------------


def test_a_moved_folder_is_the_same_data_and_a_changed_one_another(root: Path, tmp_path: Path) -> None:
    data = folder_data(write_rows(root, rows(3)))
    before = image_inputs(data)
    found = content_of(data, before["data"])
    assert (found.name, found.known) == ("images", False)
    data.path = str(root.rename(tmp_path / "moved"))
    assert image_inputs(data) == before
    (tmp_path / "moved" / ".hidden").write_text("left by a system")
    assert image_inputs(data) == before
    assert content_of(data, before["data"]).digest == found.digest
    (tmp_path / "moved" / "1.png").write_bytes(file_of(pixels(99)))
    after = image_inputs(data)
    assert after != before
    assert content_of(data, after["data"]).digest != found.digest


def test_own_images_in_the_layout_of_surd_are_not_surd(root: Path) -> None:
    data = folder_data(write_rows(root, rows(3)), "surd", num_test=1)
    found = content_of(data, image_inputs(data)["data"])
    assert content_notes(data, found) == ["own data: images, not the rows that surd names"]


def test_a_folder_is_looked_through_again_only_when_a_file_has_changed(root: Path) -> None:
    write_rows(root, rows(3))
    first = load_folder(root)
    assert load_folder(root) is first
    (root / "0.png").write_bytes(file_of(pixels(7)))
    assert load_folder(root) is not first
    with pytest.raises(UsageError, match=r"0.png: another image than a moment ago"):
        first.train[0].picture()
    (root / "0.png").unlink()
    with pytest.raises(UsageError, match=r"0.png: cannot be read"):
        first.train[0].picture()


def test_surd_that_is_not_at_hand_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> Path:
        raise hub.NotAtHandError("HF_HUB_OFFLINE is set")

    monkeypatch.setattr(hub, "find_snapshot", nowhere)
    data = folder_data(Path("unused"), "surd")
    data.path, data.hub_id = None, "zhongshsh/SURD"
    with pytest.raises(UsageError, match=r"'surd' \(zhongshsh/SURD\) is not at hand: .*give data.path=FOLDER"):
        image_inputs(data)


def test_a_repository_in_the_cache_is_what_surd_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_rows(root / "abc123", rows(5))
    monkeypatch.setattr(hub, "find_snapshot", lambda *_: folder)
    data = folder_data(folder, "surd", num_test=2)
    data.path, data.hub_id = None, "zhongshsh/SURD"
    inputs = image_inputs(data)
    assert inputs == {"data": "hub:zhongshsh/SURD@abc123"}
    assert content_of(data, inputs["data"]).known
    assert len(load_images(data).train) == 3
