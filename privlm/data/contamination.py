"""What training and test texts share: whole questions, and runs of 13 words (as of Brown et al., arXiv 2005.14165,
appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GRAM = 13  # words
WORD = re.compile(r"[a-z0-9]+")


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
    """A text in lower case, of a to z and 0 to 9 alone."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


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
    """Of a to z and 0 to 9 alone, in lower case."""
    return [found[0] for found in WORD.finditer(text.lower())]


def grams(words: Sequence[str], length: int = GRAM) -> set[str]:
    """Each run of `length` words, joined by blanks; none of a text of fewer words."""
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


def _num_in(keys: Iterable[str], others: set[str]) -> int:
    return sum(key in others for key in keys)


def _num_meeting(questions: Sequence[set[str]], others: Sequence[set[str]]) -> int:
    known = set().union(*others)
    return sum(not grams.isdisjoint(known) for grams in questions)
