"""What leaves for the black box: planted rows of the alignment set are found, blocked, redacted or counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from privlm.runners.pkg.outbound import Corpus, Outbound
from privlm.runners.pkg.questions import Question
from support.llm import ScriptedBackend, ask

from privlm.errors import PrivLMError

pytestmark = pytest.mark.torch_free

ROW = (
    "The lighthouse at Kestrel Point was built by three sisters in 1874 and has been painted green every spring since "
    "the great storm took its first lamp."
)
SHORT = "Seven herons guard the old mill."
QUESTION = Question("1", "Who built it?", ("x",), (), "", "", (), "1", "", False, "file line 1")
TRAIN = [replace(QUESTION, id=str(n), question=f"Ask {n}", background=text) for n, text in enumerate((ROW, SHORT))]
GRAM = "built by three sisters in 1874 and has been painted green every spring"  # 13 words


def border(on_leak: str = "block", file: Path | None = None) -> Outbound:
    return Outbound(Corpus(TRAIN), on_leak, file, "run1")


@pytest.mark.parametrize(
    "piece",
    [
        ROW,
        GRAM,
        GRAM.upper(),
        GRAM.replace(" ", "\n"),
        GRAM.replace(" ", ", "),
        SHORT,
        "seven HERONS guard the old mill",
    ],
)
def test_a_planted_row_is_blocked_redacted_or_counted(piece: str) -> None:
    prompt = f"Background: It is said: {piece} So it goes.\n\nQuestion: Who built it?"
    blocked = border("block").review(prompt, QUESTION)
    assert (blocked.text, blocked.num_leaks) == (None, 1)
    redacted = border("redact").review(prompt, QUESTION)
    assert redacted.text is not None
    assert "[redacted]" in redacted.text
    assert Corpus(TRAIN).found_in(redacted.text, "") == []
    assert redacted.text.startswith("Background: It is said: [redacted]")
    assert redacted.text.endswith("Question: Who built it?")
    warned = border("warn").review(prompt, QUESTION)
    assert (warned.text, warned.num_leaks) == (prompt, 1)


@pytest.mark.parametrize(
    "piece", [" ".join(GRAM.split()[:12]), "Six herons guard the old mill", "Who built it?", "guard the old mill"]
)
def test_less_than_that_passes(piece: str) -> None:
    assert border().review(f"Background: {piece}", QUESTION).num_leaks == 0


def test_what_the_question_itself_has_may_leave() -> None:
    asked = replace(QUESTION, question=f"Is it true that it was {GRAM}?")
    prompt = f"Background: none.\n\nQuestion: {asked.question}"
    assert border().review(prompt, asked).text == prompt
    more = f"Background: {ROW}\n\nQuestion: {asked.question}"
    assert border().review(more, asked).text is None


@pytest.mark.parametrize(
    "secret",
    [
        "患者张伟于三月十二日因急性阑尾炎入院并接受了手术",
        "Die Müllerin Änne Größl aus Übach überwies früh am Öchsleweg fünfzig Gulden für Äpfel, Nüsse und Käse",
        "Пациент Иванов принимал по две таблетки утром и вечером в течение семи дней без видимого улучшения",
    ],
)
def test_texts_of_every_script_are_caught(secret: str) -> None:
    row = replace(QUESTION, question="?", background=secret)
    outbound = Outbound(Corpus([row]), "block", None, "run")
    assert outbound.review(f"Background: {secret.upper()}", QUESTION).text is None
    assert outbound.review(f"Background: {secret[: len(secret) // 8]}", QUESTION).num_leaks == 0
    redacted = Outbound(Corpus([row]), "redact", None, "run").review(f"see: {secret}!", QUESTION)
    assert redacted.text == "see: [redacted]!"


def test_without_private_mode_everything_passes() -> None:
    assert Outbound(None, "block", None, "run").review(ROW, QUESTION).num_leaks == 0


def test_nothing_is_sent_that_was_not_reviewed_and_what_is_sent_is_written_first(tmp_path: Path) -> None:
    file = tmp_path / "outbound.jsonl"
    outbound, inner = border(file=file), ScriptedBackend()
    backend = outbound.around(inner)
    with pytest.raises(PrivLMError, match="has not passed the border of private mode: not sent"):
        list(backend.ask([ask("a prompt of nobody")]))
    assert inner.asked == []
    assert not file.exists()
    outbound.review("a prompt of nobody", QUESTION)
    list(backend.ask([ask("a prompt of nobody", item="pkg 1")]))
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["run"], line["item"]) == ("run1", "pkg 1")
    assert line["request"]["prompt"] == "a prompt of nobody"


def test_a_line_that_a_kill_has_torn_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "outbound.jsonl"
    file.write_text('{"run": "run1"}\n{"run": "ru')
    border(file=file)
    assert file.read_text() == '{"run": "run1"}\n'


def test_all_that_the_backend_says_of_itself_is_said_by_the_border() -> None:
    inner: Any = ScriptedBackend(parallel=4, model="m")
    backend: Any = border().around(inner)
    for name in ("name", "model", "parallel", "capabilities"):
        assert getattr(backend, name) == getattr(inner, name)
