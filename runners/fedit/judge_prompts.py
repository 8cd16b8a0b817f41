"""What a judge is asked, and what its reply says; None where it says nothing that can be counted, never a guess.

Ratings and verdicts stand in double square brackets, as in FastChat's and OpenFedLLM's judges; the wording is our own.
"""

from __future__ import annotations

import re

SINGLE = (
    "You grade the answer that an assistant has given to a question. Look at whether it does what is asked, whether "
    "what it says is true, and whether it is complete and clear; length alone earns nothing. Give your reasons in one "
    "or two sentences. Then end with your grade, a whole number from 1 (of no use) to 10 (nothing to improve), in "
    "double square brackets, like this: [[5]]\n\n<question>\n{question}\n</question>\n\n<answer>\n{answer}\n</answer>"
)

PAIRWISE = (
    "You compare the answers that two assistants, A and B, have given to a question. Look at which one does better "
    "what is asked, whether what they say is true, and whether they are complete and clear; neither length nor the "
    "order of the two earns anything. Give your reasons in one or two sentences. Then end with your verdict in double "
    "square brackets: [[A]] if A is better, [[B]] if B is better, [[C]] if neither is.\n\n"
    "<question>\n{question}\n</question>\n\n"
    "<answer of A>\n{first}\n</answer of A>\n\n<answer of B>\n{second}\n</answer of B>"
)

MARK = re.compile(r"\[\[([^\[\]]*)\]\]")
RATING = re.compile(r"[1-9]|10")
OURS_FIRST = {"A": "win", "B": "loss", "C": "tie"}
OURS_SECOND = {"A": "loss", "B": "win", "C": "tie"}


def rating(text: str) -> int | None:
    """The whole number from 1 to 10 that stands in double square brackets, whatever stands around them; None where
    there is none, another number, or two different ones.
    """
    found = _mark(text)
    return int(found) if found is not None and RATING.fullmatch(found) else None


def verdict(text: str) -> str | None:
    """A, B or C in the same way."""
    found = _mark(text)
    return found if found in OURS_FIRST else None


def outcome(ours_first: str | None, ours_second: str | None) -> str | None:
    """win, loss or tie of two verdicts on one question, our answer being A in the first and B in the second; flip where
    they do not agree, None where one of them is none.
    """
    if ours_first is None or ours_second is None:
        return None
    first, second = OURS_FIRST[ours_first], OURS_SECOND[ours_second]
    return first if first == second else "flip"


def _mark(text: str) -> str | None:
    found = {mark.strip() for mark in MARK.findall(text)}
    return found.pop() if len(found) == 1 else None
