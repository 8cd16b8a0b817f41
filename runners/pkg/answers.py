"""From the text of an answer to what it says; None where it says nothing that can be counted, never a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence

from privlm.llm.program.answers import well_formed
from privlm.metrics.exact_match import normalised

from .questions import LETTERS, Question

SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
ASKED_BACK = re.compile(r"\b(?:true or false|false or true|true/false|supported or refuted)\b", re.IGNORECASE)
"""The question again, or both answers."""

VERDICT = re.compile(
    r"(?:(?P<negation>\bnot|\bnever|n['’]t|\bcannot)\s+(?:\w+\s+){0,2}?)?"
    r"\b(?P<word>true|false|untrue|supports|supported|refutes|refuted)\b",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:neither|may|might|could|perhaps|maybe|possibly|probably|partly|partially|half|unclear|unsure|uncertain|"
    r"unknown|whether|if)\b|\b(?:not|n['’]t)\s+(?:sure|clear|certain|enough)\b|\bcannot\s+(?:say|tell|be\s+determined)\b",
    re.IGNORECASE,
)
SAYS_TRUE = ("true", "supports", "supported")
LETTER_BEFORE_TEXT = re.compile(
    r"\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|option)(?:\s+is)?\s*:?\s*)?\(?([A-J])[).:]\s+\S", re.I
)


def read_answer(text: str, question: Question) -> str | None:
    """true or false of a claim, the letter of an option, else the answer as it is compared (`normalised`)."""
    if question.is_claim:
        return verdict(text)
    if question.options:
        return option(text, question.options)
    return normalised(text) or None


def is_right(read: str | None, question: Question) -> bool:
    """Whether an answer as read is one of those that count. Exact match, of texts after normalisation."""
    if question.is_claim or question.options:
        return read in question.answers
    return read is not None and read in map(normalised, question.answers)


def verdict(text: str) -> str | None:
    """true or false: what the first sentence with a verdict says. `not true` is false; a hedge, `neither`, and a
    sentence that says both are no verdict.
    """
    for sentence in SENTENCES.split(ASKED_BACK.sub(" ", text)):
        found = list(VERDICT.finditer(sentence))
        if not found:
            continue
        if HEDGE.search(sentence[: found[-1].end()]):
            return None
        said = {(one["word"].lower() in SAYS_TRUE) != bool(one["negation"]) for one in found}
        return str(said.pop()).lower() if len(said) == 1 else None
    return None


def option(text: str, options: Sequence[str]) -> str | None:
    """The letter that an answer names, alone or before the text of its own option, or by that text alone."""
    letters = LETTERS[: len(options)]
    plain = [_plain(one) for one in options]
    if plain.count(_plain(text)) == 1:
        return letters[plain.index(_plain(text))]
    if letter := well_formed(text, letters, with_lead_in=True):
        return letter
    if (found := LETTER_BEFORE_TEXT.match(text)) is None or found[1].upper() not in letters:
        return None
    letter = found[1].upper()
    rest = _plain(text[found.end(1) + 1 :].split("\n", maxsplit=1)[0])
    others = [other for number, other in enumerate(plain) if letters[number] != letter]
    return None if any(rest == other for other in others) else letter


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
