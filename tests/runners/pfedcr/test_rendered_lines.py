"""Lines that are rendered here: organisations, difficulties, the server's own, fonts, and an outside reader's word."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privlm.runners.pfedcr import fonts
from privlm.runners.pfedcr.alphabet import Alphabet
from privlm.runners.pfedcr.data import Clients, load
from privlm.runners.pfedcr.fonts import Face, find_font, require_fonts
from privlm.runners.pfedcr.outside_reader import OutsideReader
from privlm.runners.pfedcr.rendered import LONG, SERVER_FONTS, virtual_lines
from privlm.runners.pfedcr.scores import Scores
from support.composed import composed
from support.lines import needs_fonts

from privlm.cli import main
from privlm.errors import UsageError


def rendered(*words: str) -> Clients:
    return load(composed("task=pfedcr", "data.num_train_lines=12", "data.num_test_lines=6", *words))


def greys(clients: Clients, name: str) -> np.ndarray:
    (client,) = (client for client in clients.clients if client.name == name)
    return np.concatenate([line.image.ravel() for line in client.train]).astype(float)


@needs_fonts
def test_four_organisations_have_lines_of_their_own_look() -> None:
    found = rendered()
    assert [(client.name, len(client.train), len(client.test)) for client in found.clients] == [
        (name, 12, 6) for name in ("express", "bank", "hospital", "telecom")
    ]
    medians = {client.name: np.median(greys(found, client.name)) for client in found.clients}
    assert medians["express"] > medians["telecom"] > medians["bank"] > medians["hospital"]
    for client in found.clients:
        ink = np.mean(greys(found, client.name) < medians[client.name] - 60)
        assert 0.02 < ink < 0.35
        assert all(line.image.shape[0] == 24 and 40 < line.width < 320 for line in client.train)


@needs_fonts
def test_lines_are_a_function_of_organisation_split_and_seed() -> None:
    first, again, other = rendered(), rendered("data.num_train_lines=3"), rendered("data.seed=1")
    for one, same in zip(first.clients, again.clients, strict=True):
        assert [line.text for line in one.train[:3]] == [line.text for line in same.train]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(one.test, same.test, strict=True))
    assert first.clients[0].train[0].text != first.clients[0].test[0].text
    assert [line.text for line in other.train] != [line.text for line in first.train]


@needs_fonts
def test_an_inverted_organisation_is_light_on_dark() -> None:
    assert np.median(greys(rendered("data.inverted=true"), "telecom")) < 60


@needs_fonts
def test_harder_lines_have_less_of_their_ink_and_more_noise() -> None:
    images = [rendered(f"data.difficulty={name}").train[0].image.astype(float) for name in ("clean", "medium", "hard")]
    steps = [np.median(np.abs(np.diff(image, axis=1))) for image in images]
    assert steps[0] < steps[1] < steps[2]
    assert images[0].min() < images[1].min() + 40


@needs_fonts
def test_planted_labels_differ_by_a_character_and_the_truth_is_kept() -> None:
    plain, planted = rendered(), rendered("data.wrong_labels=0.25")
    wrong = [(old, new) for old, new in zip(plain.train, planted.train, strict=True) if new.truth is not None]
    assert len(wrong) == 4 * 3
    assert all(old.text == new.truth for old, new in wrong)
    assert all(sum(a != b for a, b in zip(old.text, new.text, strict=True)) == 1 for old, new in wrong)
    assert [line.text for client in planted.clients for line in client.test] == [
        line.text for client in plain.clients for line in client.test
    ]


@needs_fonts
@pytest.mark.parametrize("choice", SERVER_FONTS)
def test_the_servers_lines_are_balanced_dark_and_light_and_of_several_looks(choice: str) -> None:
    alphabet = rendered().alphabet
    lines = virtual_lines(alphabet, 160, LONG, require_fonts(SERVER_FONTS[choice], {}), 24, "test", 0)
    counts = Counter("".join(line.text for line in lines))
    assert set(counts) == set(alphabet.symbols)
    assert max(counts.values()) <= 1.1 * min(counts.values())
    dark = np.mean([np.median(line.image) < 128 for line in lines])
    assert 0.15 < dark < 0.55
    again = virtual_lines(alphabet, 160, LONG, require_fonts(SERVER_FONTS[choice], {}), 24, "test", 1)
    assert [line.text for line in again] != [line.text for line in lines]


@needs_fonts
@pytest.mark.parametrize("name", fonts.FONTS)
def test_a_glyph_that_a_font_lacks_is_seen(name: str) -> None:
    path = find_font(name)
    assert path is not None
    face = Face(name, path, 18)
    assert face.has_all("京市0号")
    assert not face.has("\u0e01")
    assert not face.has_all("京\u0e01")


@needs_fonts
def test_a_character_that_no_font_of_the_server_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no font of noto_serif_bold, wqy_zenhei has \u0e01"):
        virtual_lines(Alphabet.of("京\u0e01"), 4, LONG, require_fonts(SERVER_FONTS["disjoint"], {}), 24, "test", 0)


@needs_fonts
def test_a_font_that_lacks_a_character_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The serif font is made to lack one character, which is then written in the other."""
    whole, drawn = Face.has, []
    monkeypatch.setattr(
        Face, "has", lambda face, one: whole(face, one) and not (face.name == "wqy_zenhei" and one == "京")
    )
    monkeypatch.setattr(
        "privlm.runners.pfedcr.rendered.draw_line", lambda text, face, *rest: drawn.append((text, face.name))
    )
    paths = require_fonts(SERVER_FONTS["disjoint"], {})
    virtual_lines(Alphabet.of("京市号"), 40, (1, 2), paths, 24, "test", 0)
    assert {name for text, name in drawn if "京" in text} == {"noto_serif_bold"}
    assert {name for text, name in drawn if "京" not in text} == set(paths)


def test_without_fonts_the_line_that_installs_them_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(fonts, "_files", dict)
    assert main(["run", "task=pfedcr", "scale=smoke"]) == 2
    told = capsys.readouterr().err
    assert "no Chinese font to render lines with: noto_sans, ukai not found" in told
    assert "apt-get install --no-install-recommends fonts-noto-cjk fonts-arphic-ukai" in told
    assert "Traceback" not in told


def test_a_damaged_font_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.ttf"
    path.write_bytes(b"\x00\x01\x00\x00" + bytes(40))
    with pytest.raises(UsageError, match=r"data.fonts.ukai: .*mine.ttf is no font that can be read"):
        Face("ukai", path, 18)
    with pytest.raises(UsageError, match=r"data.fonts.ukai: there is no file"):
        require_fonts(["ukai"], {"ukai": str(tmp_path / "none.ttf")})
    with pytest.raises(UsageError, match=r"data.fonts.kai: the fonts are noto_sans"):
        require_fonts(["ukai"], {"kai": str(path)})


@needs_fonts
def test_an_outside_reader_reads_what_the_labels_say() -> None:
    pytest.importorskip("rapidocr", reason="pip install 'privlm[ocr]'")
    pytest.importorskip("onnxruntime", reason="pip install 'privlm[ocr]'")
    lines = rendered("data.contents=own").train
    reader = OutsideReader()
    scores = Scores.of(reader.read(lines), [line.text for line in lines])
    assert scores.character_accuracy().value >= 0.99
    assert 10**6 < reader.num_parameters() < 10**8


@needs_fonts
def test_built_lines_are_read_back_as_they_were_rendered(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "built"
    words = ["num_train_lines=4", "num_test_lines=2", "difficulty=medium", "wrong_labels=0.25"]
    assert main(["build", "lines", str(folder), *words]) == 0
    assert capsys.readouterr().out == f"{folder}: 24 lines of 4 clients\n"
    made = rendered(*(f"data.{word}" for word in words))
    found = load(composed("task=pfedcr", "data=line_folder", f"data.path={folder}"))
    assert found.alphabet == made.alphabet
    for one, same in zip(sorted(made.clients, key=lambda client: client.name), found.clients, strict=True):
        assert one.name == same.name
        for before, after in zip([*one.train, *one.test], [*same.train, *same.test], strict=True):
            assert before.text == after.text
            assert np.array_equal(before.image, after.image)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lines", "FOLDER", "dificulty=hard"], "Key 'dificulty' not in 'LinesConfig'"),
        (["lines", "FOLDER", "difficulty=easy"], "difficulty: 'easy' is not one of clean, medium, hard"),
        (["line", "FOLDER"], "no builder 'line'; did you mean lines?"),
        (["lines", "FOLDER", "hard"], "'hard' is no field=value"),
        (["lines", "."], "is not empty: give a new folder"),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["build", *(word.replace("FOLDER", "new") for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
