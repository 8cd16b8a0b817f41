"""`privlm build surd`: sentences from a column or from a language model, whose answers outlive a build that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from privlm.runners.sur_adapter.builders import ASKED, BUILDERS
from support.image_folders import load_folder, rows, write_rows
from support.llm import ScriptedBackend

from privlm.errors import ServiceError, UsageError
from privlm.files import sha256_file
from privlm.llm import opening
from privlm.llm.types import Answer

surd = BUILDERS["surd"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "images", [row | {"said": f"There is thing {i}."} for i, row in enumerate(rows(6))])


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., list[str]]:
    """Answers to the keywords of each image, and the words by which they are asked for."""

    def write(sentences: dict[int, str]) -> list[str]:
        path = tmp_path / "answers.jsonl"
        lines = [
            {"prompt": ASKED.format(keywords=f"keyword {number}"), "answer": text} for number, text in sentences.items()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return ["llm=replay", f"llm.path={path}"]

    return write


def test_sentences_of_a_column_go_beside_the_keywords_and_images_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    said = surd(tmp_path / "new", [f"images={root}", "captions=said"])
    assert said == "6 images with keywords and a sentence each"
    found = load_folder(tmp_path / "new", "surd", num_test=2)
    assert {(row.text, row.prompt) for row in [*found.train, *found.test]} == {
        (f"There is thing {i}.", f"keyword {i}") for i in range(6)
    }
    assert len(found.test) == 2
    assert sha256_file(tmp_path / "new" / "3.png") == sha256_file(root / "3.png")


def test_splits_of_the_images_are_kept(root: Path, tmp_path: Path) -> None:
    write_rows(root, [row | {"split": "test" if i > 3 else "train"} for i, row in enumerate(rows(6))])
    surd(tmp_path / "new", [f"images={root}", "captions=text"])
    found = load_folder(tmp_path / "new", "surd")
    assert (len(found.train), len(found.test)) == (4, 2)


def test_a_language_model_says_the_keywords_as_a_sentence(
    root: Path, tmp_path: Path, recorded: Callable[..., list[str]]
) -> None:
    answers = {i: f' "A picture of thing {i}."\nKeywords: more' for i in range(6)}
    said = surd(tmp_path / "new", [f"images={root}", *recorded(answers)])
    assert said == "6 images with keywords and a sentence each"
    found = load_folder(tmp_path / "new")
    assert [(row.text, row.prompt) for row in found.train] == [
        (f"A picture of thing {i}.", f"keyword {i}") for i in range(6)
    ]


def test_images_without_a_sentence_are_left_out_counted_and_refused_when_many(
    root: Path, tmp_path: Path, recorded: Callable[..., list[str]]
) -> None:
    words = [f"images={root}", *recorded({i: f"A thing {i}." for i in range(6)} | {2: " \n", 4: "keyword 4"})]
    with pytest.raises(
        UsageError, match=r"llm=replay gave no sentence for 2 of 6 images, more than max_bad_share=0.05"
    ):
        surd(tmp_path / "new", words)
    assert not (tmp_path / "new").exists()
    assert surd(tmp_path / "new", [*words, "max_bad_share=0.4"]).endswith("; 2 without a sentence of the model")
    assert len(load_folder(tmp_path / "new").train) == 4


def test_a_build_that_was_cut_short_asks_only_what_is_missing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVLM_CACHE", str(tmp_path / "cache"))

    def answer(number: int) -> Callable[[Any], Answer]:
        def reply(request: Any) -> Answer:
            if len(backends[-1].asked) > number:
                return Answer("", "server_error", detail="gone")
            return Answer("A thing.", "ok", prompt_tokens=4, completion_tokens=3)

        return reply

    backends: list[ScriptedBackend] = []

    def opened(number: int) -> None:
        backends.append(ScriptedBackend(answer(number)))
        monkeypatch.setattr(opening, "open_backend", lambda *_: backends[-1])

    words = [f"images={root}", "llm=tiny"]
    opened(4)
    with pytest.raises(ServiceError, match="the same command asks the rest again"):
        surd(tmp_path / "new", words)
    opened(100)
    surd(tmp_path / "new", words)
    assert [len(backend.asked) for backend in backends] == [6, 2]
    assert [row.text for row in load_folder(tmp_path / "new").train] == ["A thing."] * 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captions=said"], "images: name the folder of images"),
        (["images=ROOT"], "say where the sentences come from"),
        (["images=ROOT", "captions=said", "llm=tiny"], "say where the sentences come from"),
        (["images=ROOT", "captions=said", "llm.path=x"], "llm.path=x is of a model that no word names"),
        (["images=ROOT/gone", "captions=said"], "data.path: there is no folder"),
        (["images=ROOT", "captions=sayd"], r"captions=sayd: no row has a sentence .*has no column sayd"),
        (["images=ROOT", "captions=prompt"], "captions=prompt: no row has a sentence beside its keywords"),
        (["images=ROOT", "captions=said", "prompt_column=tags"], "no row has a sentence beside its keywords"),
        (["images=ROOT", "llm=tinny"], "llm: 'tinny' is not one of .*did you mean 'tiny'"),
        (["images=ROOT", "llm=replay"], "llm.path: name the file of recorded answers"),
        (["images=ROOT", "llm=tiny", "llm.pth=x"], "llm: Key 'pth' not in 'LocalLLMConfig'"),
        (["images=ROOT", "captions=said", "column=x"], "data: Key 'column' not in 'ImagesConfig'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_written(
    words: list[str], message: str, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        surd(tmp_path / "new", [word.replace("ROOT", str(root)) for word in words])
    assert not (tmp_path / "new").exists()
