"""What training and test texts share: whole questions, and runs of 13 words (as of Brown et al., arXiv 2005.14165,
appendix C).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GRAM = 13  # words
_SIGNS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # kana, ideographs, hangul
WORD = re.compile(rf"[{_SIGNS}]|[^\W_{_SIGNS}]+")
"""A word in any script; of scripts that are written without blanks each sign is one."""


@dataclass(frozen=True)
class Overlap:
    """Questions of each side that the other side has too.

    exact: equal but for case, blanks and signs. gram: with 13 words in a row of some question of the other side; a
    question of fewer words has none.
    """

    exact_train: int
    exact_test: int
    gram_train: int
    gram_test: int
    num_train: int
    num_test: int


def normalised(text: str) -> str:
    """The letters and digits of a text, in any script, whatever their case."""
    return "".join(sign for sign in _folded(text) if sign.isalnum())


def overlap(train: Sequence[str], test: Sequence[str]) -> Overlap:
    """train, test: the questions of each side, equal ones each counted."""
    train_keys, test_keys = [normalised(text) for text in train], [normalised(text) for text in test]
    train_grams, test_grams = [grams(words_of(text)) for text in train], [grams(words_of(text)) for text in test]
    return Overlap(
        exact_train=_num_in(train_keys, set(test_keys)),
        exact_test=_num_in(test_keys, set(train_keys)),
        gram_train=_num_meeting(train_grams, test_grams),
        gram_test=_num_meeting(test_grams, train_grams),
        num_train=len(train),
        num_test=len(test),
    )


def words_of(text: str) -> list[str]:
    """Whatever their case."""
    return [word for word, _, _ in placed_words(text)]


def placed_words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text, with the places where they begin and end."""
    return [(_folded(found[0]), found.start(), found.end()) for found in WORD.finditer(text)]


def grams(words: Sequence[str], length: int = GRAM) -> set[str]:
    """Each run of `length` words, joined by blanks; none of a text of fewer words."""
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _num_in(keys: Iterable[str], others: set[str]) -> int:
    return sum(key in others for key in keys if key)  # without a letter or digit it is no question


def _num_meeting(questions: Sequence[set[str]], others: Sequence[set[str]]) -> int:
    known = set().union(*others)
    return sum(not grams.isdisjoint(known) for grams in questions)
