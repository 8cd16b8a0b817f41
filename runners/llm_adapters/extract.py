"""Reads the answer out of what a model wrote, by two rules: as the released scorer does, and strictly.

strict: what stands before a further "### Instruction:", which the model asks itself.
A number: the last one in the sentence after the last answer cue ("answer is", "answer:", "####", else "="),
without a cue the last one of the text. A minus counts as a sign only where a number can begin; commas only between
groups of three digits; fractions, mixed numbers, exponents, currencies, units, unicode minus and fraction signs are
understood. A letter: a stand-alone marker of an option, or the exact text of one option.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

TOLERANCE = Fraction(1, 1000)
"""A number is right when it is no further than this from the label, as released."""

LETTERS = "ABCDE"
MAX_DIGITS, MAX_EXPONENT = 300, 300
"""Beyond these nobody means a number, and exact arithmetic would take for ever."""

# --- as released ----------------------------------------------------------------------------------------------------

UPSTREAM_NUMBER = re.compile(r"-?\d+\.?\d*")


def upstream_number(text: str) -> float:
    """The last number once all commas are gone, infinity without one: "10-5" is -5, "1,2" is 12."""
    found = UPSTREAM_NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else math.inf


def upstream_letter(text: str) -> str:
    """The first capital A to E anywhere, "" without one: that of "Because" counts."""
    found = re.search(r"[A-E]", text)
    return found[0] if found else ""


# --- strict ---------------------------------------------------------------------------------------------------------

NEXT_QUESTION = "### Instruction:"
CUE = re.compile(r"\banswer\s+is\b|\banswer\s*:|####", re.IGNORECASE)
EQUALS = re.compile(r"=")
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")

NUMBER = re.compile(
    r"""
    (?:(?<=\bRs)|(?<=\bUSD)|(?<=\bEUR)|(?<![\w.^/]))       # no part of a word, number, power or date
    (?P<sign>(?<![^\s(\[{<=:$€£₹*"'`])-)?
    (?:[$€£₹]\s?(?P<inner>-)?)?
    (?:
      (?P<whole>\d+)[ ](?P<above>\d+)/(?P<below>\d+)(?![\d/])
    | (?P<numerator>\d+)/(?P<denominator>\d+)(?![\d/])
    | (?P<decimal>(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)
      (?:[eE](?P<exponent>[-+]?\d+)(?!\w)
        |\s?[x*×]\s?10\^\{?(?P<power_of_ten>[-+]?\d+)\}?
        |\^\{?(?P<power>[-+]?\d+)\}?)?
    )
    """,
    re.VERBOSE,
)

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
DASHES = str.maketrans("−–－‐‑﹣", "------")


def strict_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, exactly; None where none can be read."""
    text = _plain(text.split(NEXT_QUESTION, maxsplit=1)[0])
    for cue in (CUE, EQUALS):
        if (after := _after_last(cue, text)) is not None and (found := numbers(after)):
            return found[-1]
    found = numbers(text)
    return found[-1] if found else None


def whole_number(text: str) -> Fraction | None:
    """The number that is all of a text but for blanks, such as a label; None for anything else."""
    plain = _plain(text).strip()
    match = NUMBER.fullmatch(plain)
    return None if match is None else _value(match)


def numbers(text: str) -> list[Fraction]:
    """All numbers of a text whose signs are plain."""
    values = (_value(match) for match in NUMBER.finditer(text))
    return [value for value in values if value is not None]


def strict_letter(text: str, options: Sequence[str]) -> str | None:
    """The option that a text chooses; None where it chooses none, or more than one.

    options: the texts of A, B, ... in their order.
    """
    text = text.split(NEXT_QUESTION, maxsplit=1)[0].strip()
    letters = LETTERS[: len(options)]
    after = _after_last(CUE, text)
    if after is not None:
        return _chosen(after, letters) or _option_named(after, options)
    alone = _chosen(text, letters) if len(text) <= len("**(A).**") else None
    return alone or _option_named(text, options) or _only(_markers(text, letters))


def is_right(read: Fraction | None, label: Fraction) -> bool:
    """Within the tolerance, its ends included."""
    return read is not None and abs(read - label) <= TOLERANCE


def upstream_is_right(read: float, label: str) -> bool:
    """As released, in floating point: 0.501 is not 0.001 away from 0.5 there."""
    return abs(float(label) - read) <= float(TOLERANCE)


def _plain(text: str) -> str:
    """Unicode minus, fraction and superscript signs, and LaTeX's fractions and commas, in ASCII."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: "^" + found[0].translate(SUPERSCRIPTS), text)
    text = re.sub(r"(\d?)([¼-¾⅐-⅞])", _fraction_sign, text)
    text = unicodedata.normalize("NFKC", text).translate(DASHES)
    text = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    return text.replace("{,}", ",").replace("\\$", "$")


def _fraction_sign(found: re.Match[str]) -> str:
    """2½ becomes 2 1/2."""
    spelt = unicodedata.normalize("NFKC", found[2]).replace("\N{FRACTION SLASH}", "/")
    return f"{found[1]} {spelt}" if found[1] else spelt


def _after_last(cue: re.Pattern[str], text: str) -> str | None:
    """The sentence after the last cue, or all that follows where that sentence holds nothing; None without a cue."""
    found = list(cue.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :].lstrip(" \t\r\n:*")
    end = SENTENCE_END.search(rest)
    sentence = rest if end is None else rest[: end.start()]
    return sentence if re.search(r"\w", sentence) else rest


def _value(match: re.Match[str]) -> Fraction | None:
    """None for a denominator of 0 and for what is too long."""
    if len(match[0]) > MAX_DIGITS:
        return None
    part = match.groupdict()
    try:
        if part["whole"]:
            value = int(part["whole"]) + Fraction(int(part["above"]), int(part["below"]))
        elif part["numerator"]:
            value = Fraction(int(part["numerator"]), int(part["denominator"]))
        else:
            value = Fraction(part["decimal"].replace(",", ""))
    except ZeroDivisionError:
        return None
    exponents = [int(part[name]) for name in ("exponent", "power_of_ten", "power") if part[name]]
    if any(abs(exponent) > MAX_EXPONENT for exponent in exponents):
        return None
    if part["power"]:
        if value == 0 and exponents[0] < 0:
            return None
        value = Fraction(value ** exponents[0])
    elif exponents:
        value *= Fraction(10) ** exponents[0]
    return -value if part["sign"] or part["inner"] else value


def _chosen(text: str, letters: str) -> str | None:
    """A letter at the beginning: (C), C), **C**, or C alone. An A before a word is an article."""
    text = re.sub(r"^(?:option|choice)\s+", "", text.lstrip(" *"), flags=re.IGNORECASE)
    found = re.match(rf"(?:\(([{letters}])\)|([{letters}])(?![\w'’:]))", text)
    if found is None:
        return None
    letter = found[1] or found[2]
    rest = text[found.end() :]
    if letter == "A" and found[2] and re.match(r"\s+[a-z0-9]", rest):
        return None
    others = {other for other in _markers(rest, letters) if other != letter}
    return None if others else letter


def _markers(text: str, letters: str) -> set[str]:
    """The letters that stand as (C) or as "option C" or "choice C"."""
    found = re.findall(rf"\(([{letters}])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([{letters}])\b", text)
    return {one or other for one, other in found}


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None


def _option_named(text: str, options: Sequence[str]) -> str | None:
    """The option whose whole text this is, but for case, blanks and a full stop."""
    wanted = _bare(text)
    matching = {LETTERS[place] for place, option in enumerate(options) if wanted and _bare(option) == wanted}
    return _only(matching) or _only(_markers(text, LETTERS[: len(options)]))


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text).strip(".*").lower()
