"""One well-formed answer among given options: the word, then an end of sentence or text. Everything else is no answer.

"No idea." is not no, "Yes and no" and "Yes? No." are neither, "A or B" is not A, and an article is not the option A.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

OPENING = r"[\s\"'“”‘’`*_(\[{#>-]*"
CLOSING = r"[\"'“”‘’`*_)\]}]*"
END = rf"{CLOSING}(?:\s*$|\s*\n|[.!]+(?!\s*\d){CLOSING}|[,;:](?=\s|$)|\s+[-–—(]|[–—])"
LEAD_IN = (
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:(?:my|the|final|correct|right|best|short)\s+)*"
    r"(?:answer|option|choice|verdict)(?:\s+is)?\s*[:=]?\s*"
)
HEDGE = re.compile(
    r"\W*(?:(?:but|and|or|well|honestly|actually|really|frankly|sorry|i|i'm|im|am|we|it|it's|that|this|there|is|are|be|"
    r"would|could|can|have|has|of|all|at|just|simply|quite|still|not)\W+)*?"
    r"(?:(?:not|n't)\s+(?:sure|certain|clear|known)|unsure|uncertain|unclear|unknown|undecided|maybe|perhaps|possibly|"
    r"probably|depends|both|neither|either|(?:do\s+not|don't|cannot|can't|can\s+not|could\s+not|couldn't)\s+"
    r"(?:really\s+)?(?:know|say|tell|determine|answer|decide|be\s+sure)|no\s+(?:idea|clue)|"
    r"(?:hard|difficult|impossible)\s+to\s+(?:say|tell|know|determine))\b",
    re.IGNORECASE,
)
"""What takes an answer back, at the beginning of what follows it."""


def well_formed(output: str, options: Sequence[str], *, with_lead_in: bool = False) -> str | None:
    """The option that the output gives as its one answer; None where it gives none, several, or takes it back.

    Case does not matter, and neither do quotes, brackets and stars around the option. What follows the end of its
    sentence or clause may explain it.

    with_lead_in: the option may stand after words such as "The answer is".
    """
    output = output.replace("’", "'")
    found = _leading(tuple(options), with_lead_in).match(output)
    if found is None:
        return None
    answer = next(option for option in options if option.casefold() == found["option"].casefold())
    rest = output[found.end("option") :]
    if HEDGE.match(rest) or any(_as_answer(option).search(rest) for option in options if option != answer):
        return None
    return answer


@lru_cache
def _leading(options: tuple[str, ...], with_lead_in: bool) -> re.Pattern[str]:
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    lead_in = f"(?:{LEAD_IN})?{OPENING}" if with_lead_in else ""
    return re.compile(rf"{OPENING}{lead_in}(?P<option>{words}){END}", re.IGNORECASE)


@lru_cache
def _as_answer(option: str) -> re.Pattern[str]:
    """The option where it stands as a second answer: at the beginning or at the end of a clause, or after and, or, but.

    Of a letter only the capital: `a` is an article.
    """
    word = rf"(?<!\w){re.escape(option)}(?!\w)"
    begins, ends = r"[.,;:!?\n/–—(-]\s*", rf"{CLOSING}\s*(?:$|[.,;:!?)\n/])"
    joined = r"(?<!\w)(?i:and|or|but|nor|also|maybe|rather|mean)\s+"
    return re.compile(rf"(?:{begins}|{joined}){word}|{word}{ends}", 0 if len(option) == 1 else re.IGNORECASE)
