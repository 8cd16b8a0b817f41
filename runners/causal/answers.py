"""From the text of an answer to a label: the rules of the released scorers, and strict ones of our own.

Upstream rules work on lower-cased text and by containment in the first tag, so that a hedged answer such as
<Answer>A/B/C</Answer> reads A. Strict rules want one well-formed answer and leave everything else unparsed (None).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from privlm.llm.program.answers import well_formed

from .items import Question

Reader = Callable[[str, Question], str | None]

FIRST_TAG = re.compile(r"<answer>.*</answer>")  # on one line, greedy, as released
LAST_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)
LETTER = re.compile(r"\(?([A-Z])\)?[.:)]?", re.IGNORECASE)
LETTER_AND_TEXT = re.compile(r"\(?([A-Z])\)?[.:)]?\s+(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class AnswerFormat:
    """The two readings of one kind of answer; each returns None for an answer that it cannot read."""

    upstream: Reader
    strict: Reader


def _first_tag(text: str) -> str:
    found = FIRST_TAG.search(text.lower())
    return found.group(0) if found else ""


def _by_containment(*rules: tuple[str, str | None]) -> Reader:
    """The label of the first mark that the first tag holds."""

    def read(text: str, question: Question) -> str | None:
        tag = _first_tag(text)
        return next((label for mark, label in rules if mark in tag), None)

    return read


def _upstream_neuropathic(text: str, question: Question) -> str | None:
    label = _by_containment((">a", "A"), (">c", "C"), (">neither", "C"), (">b", "B"))(text, question)
    if label is None and (found := re.search(r"answer: ([abc])", text.lower())):
        return found.group(1).upper()
    return label


def _strict_letter(text: str, question: Question) -> str | None:
    """The last tag: a letter, an option's exact text, or both."""
    tags = LAST_TAG.findall(text)
    if not tags:
        return None
    answer = tags[-1].strip()
    texts = [_plain(option) for option in question.options]
    letters = [chr(ord("A") + number) for number in range(len(texts))]
    if texts.count(_plain(answer)) == 1:
        return letters[texts.index(_plain(answer))]
    if (letter := LETTER.fullmatch(answer)) and letter[1].upper() in letters:
        return letter[1].upper()
    if (both := LETTER_AND_TEXT.fullmatch(answer)) and both[1].upper() in letters:
        label = both[1].upper()
        return label if texts[letters.index(label)] == _plain(both[2]) else None
    return None


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()


def _strict_tagged_word(*words: str) -> Reader:
    by_text = {word.casefold(): word for word in words}

    def read(text: str, question: Question) -> str | None:
        tags = LAST_TAG.findall(text)
        return by_text.get(_plain(tags[-1])) if tags else None

    return read


def _strict_one_word(text: str, question: Question) -> str | None:
    return well_formed(text, ("Yes", "No"))


def _upstream_starts_with_yes(text: str, question: Question) -> str | None:
    return "Yes" if text.strip().lower().startswith("yes") else "No"


def _upstream_yes_anywhere(text: str, question: Question) -> str | None:
    return "Yes" if "yes" in text.lower() else "No"


TWO_OPTIONS = AnswerFormat(_by_containment((">a", "A"), (">b", "B")), _strict_letter)
NEUROPATHIC = AnswerFormat(_upstream_neuropathic, _strict_letter)
CRASS = AnswerFormat(
    _by_containment((">both", None), (">a", "A"), (">c", "C"), (">b", "B"), (">d", "D")), _strict_letter
)
ARCTIC = AnswerFormat(_by_containment((">c", "C"), (">a", "A"), (">b", "B"), (">d", "D")), _strict_letter)
TAGGED_YES_NO = AnswerFormat(_by_containment((">yes", "Yes"), (">no", "No")), _strict_tagged_word("Yes", "No"))
TAGGED_NORMALITY = AnswerFormat(
    _by_containment((">abnormal", "Abnormal"), (">normal", "Normal")), _strict_tagged_word("Normal", "Abnormal")
)
ONE_WORD = AnswerFormat(_upstream_starts_with_yes, _strict_one_word)
YES_ANYWHERE = AnswerFormat(_upstream_yes_anywhere, _strict_one_word)
