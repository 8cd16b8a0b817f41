"""What a suite asks: questions with their right answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One prompt and its right answer.

    truth: the letter of an option, or the word itself (Yes, No, ...). options: their texts in the order of the letters
    A, B, ...; empty for a question that is answered by a word.
    """

    prompt: str
    truth: str
    options: tuple[str, ...] = ()

    def content(self, label: str) -> str:
        """What an answer says whatever the order of the options: the option's text, or the word."""
        return self.options[ord(label) - ord("A")] if self.options else label


@dataclass(frozen=True)
class Item:
    """One question of a suite.

    earlier: the same question in wordings that the authors once sent; a recorded answer to one of them counts.
    swapped: the same with its options in another order. follow_up: what is asked next, made from the answer's text.
    variables: the two of a pair, as phrases. unit: items of one unit (the two directions of a pair) are resampled
    together; part: items that are scored apart.
    """

    id: str
    question: Question
    earlier: tuple[Question, ...] = ()
    swapped: Question | None = None
    follow_up: Callable[[str], Question] | None = None
    variables: tuple[str, ...] = ()
    unit: str = ""
    part: str = ""
    weight: float = 1.0

    @property
    def resampled_as(self) -> str:
        return self.unit or self.id
