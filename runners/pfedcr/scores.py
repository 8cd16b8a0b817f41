"""How far what was read is from what is written: edit distance and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share
from privlm.metrics.statistic import statistic


@dataclass(frozen=True)
class Scores:
    """Of N lines. edits: Levenshtein distance from reading to text, [N]. lengths: of the texts, [N]. longer: of text
    and reading the longer one, [N].
    """

    edits: np.ndarray
    lengths: np.ndarray
    longer: np.ndarray

    @classmethod
    def of(cls, readings: Sequence[str], texts: Sequence[str]) -> Scores:
        pairs = list(zip(readings, texts, strict=True))
        rows = [(edit_distance(*pair), len(pair[1]), max(map(len, pair))) for pair in pairs]
        return cls(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)

    @classmethod
    def together(cls, several: Sequence[Scores]) -> Scores:
        """Of all their lines."""
        names = ("edits", "lengths", "longer")
        return cls(*(np.concatenate([getattr(scores, name) for scores in several]) for name in names))

    def character_accuracy(self) -> Estimate:
        """max(0, 1 - edits / characters), over all lines; the interval resamples lines."""
        return statistic(character_accuracy, self.edits, self.lengths)

    def line_accuracy(self) -> Estimate:
        """Share of the lines that are read without a fault."""
        return share(self.edits == 0)

    def similarity(self) -> Estimate:
        """Mean over lines of 1 - NED, the edits over the longer of the two; 1 where both are empty."""
        return statistic(np.mean, one_minus_ned(self.edits, self.longer))


def character_accuracy(edits: Any, lengths: Any, axis: int = -1) -> Any:
    total = np.sum(lengths, axis=axis)
    return np.maximum(0.0, 1.0 - np.sum(edits, axis=axis) / np.maximum(1, total))


def one_minus_ned(edits: np.ndarray, longer: np.ndarray) -> np.ndarray:
    return 1.0 - edits / np.maximum(1, longer)


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements of one character (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def matched(text: str, reading: str) -> list[bool]:
    """For each character of the text whether it is read, in an alignment with the fewest edits."""
    table = np.zeros((len(text) + 1, len(reading) + 1), dtype=np.int64)
    table[:, 0], table[0] = np.arange(len(text) + 1), np.arange(len(reading) + 1)
    for i, a in enumerate(text, start=1):
        for j, b in enumerate(reading, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    found = [False] * len(text)
    i, j = len(text), len(reading)
    while i and j:
        is_equal = text[i - 1] == reading[j - 1]
        if table[i, j] == table[i - 1, j - 1] + (not is_equal):
            found[i - 1] = is_equal
            i, j = i - 1, j - 1
        elif table[i, j] == table[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return found


def few_shot(texts: Sequence[str], readings: Sequence[str], seen: str, fewer_than: int) -> tuple[int, int]:
    """Characters of the texts that are rare among those `seen` in training: how many are read, and how many there are.

    seen: all labels that the model's client trained on, one after the other.
    """
    right = total = 0
    for text, reading in zip(texts, readings, strict=True):
        for symbol, is_read in zip(text, matched(text, reading), strict=True):
            if seen.count(symbol) < fewer_than:
                right, total = right + is_read, total + 1
    return right, total
