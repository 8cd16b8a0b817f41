"""Lines of a user's own: folders, a column, lmdb; what cannot be used is counted and named, never silently left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from privlm.runners.pfedcr.config import LinesConfig, RecogniserConfig
from privlm.runners.pfedcr.data import Clients, load
from privlm.runners.pfedcr.readers import fingerprint
from support.lines import png, write_client

from privlm.config import defaults
from privlm.errors import UsageError

ROWS = [("a.png", "ab", "train"), ("b.png", "bc", "train"), ("c.png", "ca", "test")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lines").mkdir()
    (tmp_path / "alphabet.txt").write_text("abc12号\n")
    return tmp_path / "lines"


def own(root: Path, source: str = "folder", **changes: Any) -> Clients:
    given = {"path": str(root), "alphabet": str(root.parent / "alphabet.txt")} | changes
    data = defaults(LinesConfig, "data", f"line_{source}", **given)
    model = defaults(RecogniserConfig, "model", "crnn_small")
    return load(SimpleNamespace(data=data, model=model))


def test_each_folder_is_a_client_and_a_split_is_what_its_column_says(root: Path) -> None:
    write_client(root / "bank", ROWS)
    write_client(root / "shop", ROWS)
    found = own(root)
    assert [client.name for client in found.clients] == ["bank", "shop"]
    assert [[line.text for line in part] for part in (found.clients[0].train, found.clients[0].test)] == [
        ["ab", "bc"],
        ["ca"],
    ]
    assert found.notes == []
    assert [client.name for client in own(root, clients=["shop"]).clients] == ["shop"]


def test_a_column_may_say_whose_a_line_is(root: Path) -> None:
    rows = [(f"{who}{name}", text, split, who) for name, text, split in ROWS for who in ("x", "y")]
    write_client(root, rows, header="image\ttext\tsplit\towner")
    found = own(root, client_column="owner")
    assert [(client.name, len(client.train), len(client.test)) for client in found.clients] == [
        ("x", 2, 1),
        ("y", 2, 1),
    ]


def test_a_file_without_a_split_is_split_by_place_and_seed_alone(root: Path) -> None:
    rows = [(f"{number}.png", "ab") for number in range(60)]
    write_client(root / "bank", rows, header="image\ttext")
    first, again, other = own(root), own(root), own(root, seed=1)
    names = [[line.where for line in found.clients[0].test] for found in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert 3 < len(names[0]) < 25


def test_a_mark_at_the_start_and_foreign_line_ends_change_nothing(root: Path) -> None:
    folder = write_client(root / "bank", ROWS)
    text = (folder / "labels.tsv").read_text().replace("\n", "\r\n")
    (folder / "labels.tsv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [line.text for line in own(root).clients[0].train] == ["ab", "bc"]


BAD = [
    (("x.png", "", "train"), None, "empty label"),
    (("x.png", "ab\u6f22", "train"), None, "character outside the alphabet"),
    (("x.png", "a\U0001f600", "train"), None, "character outside the alphabet"),
    (("x.png", "abc", "train"), b"no image", "image that cannot be read"),
    (("x.png", "abc", "train"), png()[:40], "image that cannot be read"),
    (("x.png", "abc", "train"), png(1, 24), "too narrow"),
    (("x.png", "abc", "train"), png(5000, 24), "wider than model.max_width"),
    (("x.png", "aabbccaabbcc", "train"), png(24, 24), "label too long for its width"),
    (("a.png", "abc", "train"), None, "image named twice"),
    (("../../alphabet.txt", "abc", "train"), None, "no image"),
]


@pytest.mark.parametrize(("row", "content", "problem"), BAD)
def test_a_line_that_cannot_be_used_is_counted_and_named_without_its_text(
    root: Path, row: tuple[str, ...], content: bytes | None, problem: str
) -> None:
    folder = write_client(root / "bank", ROWS)
    if content is not None:
        (folder / row[0]).write_bytes(content)
    write_client(folder, [*ROWS, row])
    found = own(root)
    assert found.notes == [f"bank: 1 lines left out: {problem} (bank/labels.tsv line 5)"]
    assert len(found.clients[0].train) == 2


def test_an_image_that_is_not_there_is_counted(root: Path) -> None:
    folder = write_client(root / "bank", [*ROWS, ("x.png", "abc", "train")])
    (folder / "x.png").unlink()
    assert own(root).notes == ["bank: 1 lines left out: no image (bank/labels.tsv line 5)"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P", "LA", "I;16"])
@pytest.mark.parametrize("height", [24, 48, 11])
def test_images_of_any_kind_and_height_become_grey_lines_of_the_recognisers_height(
    root: Path, mode: str, height: int
) -> None:
    folder = write_client(root / "bank", ROWS)
    (folder / "a.png").write_bytes(png(4 * height, height, mode))
    line = own(root).clients[0].train[0]
    assert (line.image.dtype, line.image.shape) == (np.uint8, (24, 96))
    if mode != "I;16":
        assert line.image.max() > 150
        assert line.image.min() < 100


def test_what_is_transparent_is_paper(root: Path) -> None:
    folder = write_client(root / "bank", ROWS)
    (folder / "a.png").write_bytes(png(transparency=20))
    assert own(root).clients[0].train[0].image.min() > 200


def test_an_unknown_character_can_be_refused_or_taken_in(root: Path) -> None:
    write_client(root / "bank", [*ROWS, ("x.png", "ab京", "train")])
    with pytest.raises(
        UsageError, match=r"bank/labels.tsv line 5: its label has 1 characters that data.alphabet lacks"
    ) as told:
        own(root, on_oov="fail")
    assert "京" not in str(told.value)
    extended = own(root, on_oov="extend")
    assert "京" in extended.alphabet.symbols
    assert len(extended.clients[0].train) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(f"{n}.png", "京市", "train") for n in range(3)],
            r"client bank has 0 lines .* character outside the alphabet",
        ),
        (ROWS[:1], "client bank has 1 lines to train and 0 to test on"),
    ],
)
def test_a_client_without_lines_to_train_or_to_test_on_is_refused(
    root: Path, rows: list[tuple[str, ...]], message: str
) -> None:
    write_client(root / "bank", rows)
    with pytest.raises(UsageError, match=message):
        own(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image\tlabel\na.png\tab\n", "no column 'text'"),
        (b"image\ttext\na.png\tab\tx\n", "line 2: 3 fields, and 2 columns"),
        (b"image\ttext\na.png\t\xff\n", "is not UTF-8"),
        (b"image\ttext\tsplit\na.png\tab\tdev\n", "column split holds neither train nor test"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_line(root: Path, content: bytes, message: str) -> None:
    (write_client(root / "bank", ROWS) / "labels.tsv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        own(root)


def test_folders_that_are_not_there_are_refused_with_what_is(root: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder in .* holds labels.tsv"):
        own(root)
    write_client(root / "bank", ROWS)
    with pytest.raises(UsageError, match=r"data.clients: no client shop in .*; there are bank"):
        own(root, clients=["shop"])


def test_the_alphabet_is_declared_by_one_or_by_all(root: Path) -> None:
    for name, symbols in (("bank", "abc"), ("shop", "cab1")):
        (write_client(root / name, ROWS) / "alphabet.txt").write_text(symbols)
    assert own(root, alphabet="union").alphabet.symbols == "1abc"
    with pytest.raises(UsageError, match=r"alphabet.txt of client bank is another alphabet .* lacks '1', '2', '号'"):
        own(root)
    (root / "shop" / "alphabet.txt").unlink()
    with pytest.raises(UsageError, match="client shop declares none"):
        own(root, alphabet="union")


def test_moved_files_are_the_same_data_and_changed_ones_are_not(root: Path) -> None:
    folder = write_client(root / "bank", ROWS)
    before = fingerprint(SimpleNamespace(path=root))
    moved = root.rename(root.parent / "elsewhere")
    assert fingerprint(SimpleNamespace(path=moved)) == before
    (moved / folder.name / "a.png").write_bytes(png(61))
    assert fingerprint(SimpleNamespace(path=moved)) != before


# --- lmdb -----------------------------------------------------------------------------------------------------------


def write_lmdb(folder: Path, labels: list[str], *, without: tuple[str, ...] = ()) -> None:
    lmdb = pytest.importorskip("lmdb", reason="pip install 'privlm[ocr]'")
    folder.mkdir(parents=True)
    entries = {"num-samples": str(len(labels)).encode()}
    for number, label in enumerate(labels, start=1):
        entries |= {f"image-{number:09d}": png(), f"label-{number:09d}": label.encode()}
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            if key not in without:
                transaction.put(key.encode(), value)


def test_an_lmdb_is_a_client(root: Path) -> None:
    write_lmdb(root / "scene", ["ab"] * 40)
    found = own(root, "lmdb")
    (client,) = found.clients
    assert (client.name, len(client.train) + len(client.test), found.notes) == ("scene", 40, [])


def test_a_gap_in_an_lmdb_is_counted_and_one_that_does_not_say_its_size_refused(root: Path) -> None:
    write_lmdb(root / "scene", ["ab"] * 40, without=("image-000000003", "label-000000007"))
    assert own(root, "lmdb").notes == [
        "scene: 1 lines left out: no image (scene line 3)",
        "scene: 1 lines left out: no label (scene line 7)",
    ]
    write_lmdb(root / "other", ["ab"] * 4, without=("num-samples",))
    with pytest.raises(UsageError, match=r"other: no key num-samples says how many lines there are"):
        own(root, "lmdb")
