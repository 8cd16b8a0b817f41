"""Backgrounds that do not fit are cut and counted, questions never; what a full disk leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from privlm.runners.pkg.backgrounds import Background
from privlm.runners.pkg.outbound import Outbound
from privlm.runners.pkg.questions import Question
from privlm.runners.pkg.reading import Reading, read
from support.llm import ScriptedBackend

from privlm.errors import UsageError
from privlm.llm.client import LanguageModel
from privlm.llm.tokens import texts_of
from privlm.llm.types import Answer, Request

QUESTION = Question("1", "Ice floats.", ("true",), (), "", "", (), "1", "", True, "file line 1")
LONG = " ".join(f"item{n}" for n in range(200))


class WordCounter(ScriptedBackend):
    """Tokens are words."""

    def count_tokens(self, request: Request) -> int:
        return sum(len(text.split()) for text in texts_of(request))


class Memory:
    """What reading needs of a stage."""

    def __init__(self, window: int | None) -> None:
        self.config: Any = OmegaConf.create(
            {
                "task": {"answer_max_tokens": 5, "chat": True},
                "data": {"kind": "claim"},
                "llm": {"context_length": window},
            }
        )

    def rows(self, path: str, items: Any, answer: Any, *, interruptible: bool) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        answer(items, lambda item, fields: lines.append({"item": item, **fields}))
        return lines


def reading(background: str, window: int | None, question: Question = QUESTION) -> tuple[Reading, str]:
    backend = WordCounter(lambda request: Answer("true", "ok"), capabilities=("generate",))
    model = LanguageModel(backend, cache="off")
    border = Outbound(None, "block", None, "run")
    stage: Any = Memory(window)
    (found,), _ = read(stage, "pkg", [question], [Background(background, "ok", {})], model, border)
    return found, backend.asked[0].prompt[0].content  # type: ignore[union-attr]


@pytest.mark.parametrize("window", [40, 60, 100])
def test_a_background_that_does_not_fit_is_cut_at_its_end_and_flagged(window: int) -> None:
    found, prompt = reading(LONG, window)
    assert found.is_cut
    assert prompt.startswith("Background: item0 item1 ")
    assert "Claim: Ice floats.\n" in prompt
    assert prompt.endswith("true or false.")
    assert len(prompt.split()) + 5 == window  # not a word less than fits
    assert found.background_tokens == prompt.count("item")


def test_what_fits_is_whole_and_without_a_limit_nothing_is_cut() -> None:
    for window in (None, 400):
        found, prompt = reading(LONG, window)
        assert not found.is_cut
        assert LONG in prompt


def test_an_empty_background_is_asked_about_as_without_one() -> None:
    found, prompt = reading("", 100)
    assert (found.is_cut, found.background_tokens) == (False, 0)
    assert "ackground" not in prompt


def test_a_question_that_does_not_fit_is_refused_by_its_row() -> None:
    with pytest.raises(UsageError, match=r"file line 1: the question alone .* exceed the 40 tokens"):
        reading(LONG, 40, replace(QUESTION, question=LONG))


@pytest.mark.medium
def test_a_full_disk_ends_the_run_and_what_was_written_is_kept(zygote: Any, tmp_path: Path) -> None:
    words = ("run", "task=pkg", "scale=smoke", f"runs={tmp_path}", "task.guides=[none,genread]")
    small = ("data.num_test_questions=4",)
    whole = zygote.run(*words, *small, f"runs={tmp_path / 'whole'}")
    assert whole.status == 0, whole.output
    full = zygote.run(*words, *small, fault=("full", whole.writes // 2))
    assert full.status == 1
    assert "Traceback" not in full.output
    assert "No space left" in full.output
    again = zygote.run(*words, *small)
    assert again.status == 0, again.output
