"""Both extractors on one table of answers: what the released scorer reads, and what is meant."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from privlm.runners.llm_adapters.extract import (
    is_right,
    strict_letter,
    strict_number,
    upstream_is_right,
    upstream_letter,
    upstream_number,
    whole_number,
)

pytestmark = pytest.mark.torch_free

NOTHING = math.inf

# text: what the released scorer reads, what the strict extractor reads
NUMBERS: dict[str, tuple[float, float | None]] = {
    "": (NOTHING, None),
    "Because": (NOTHING, None),
    "I do not know.": (NOTHING, None),
    "five": (NOTHING, None),
    "7": (7, 7),
    "-3": (-3, -3),
    "\u22123": (3, -3),  # unicode minus
    "x = -3": (-3, -3),
    "(-3)": (-3, -3),
    "10-5": (-5, 5),
    "10 - 5": (5, 5),
    "10\u20135": (5, 5),
    "pages 3-7": (-7, 7),
    "(10)-5": (-5, 5),
    "10%-5": (-5, 5),
    "1,234.50": (1234.5, 1234.5),
    "1,2": (12, 2),
    "3, 4 and 5": (5, 5),
    "12,34": (1234, 34),
    "1,234,567": (1234567, 1234567),
    "$5.": (5, 5),
    "$1,000": (1000, 1000),
    "-$5": (5, -5),
    "$-5": (-5, -5),
    "US$ 12.50": (12.5, 12.5),
    "\u20ac3": (3, 3),
    "Rs. 620": (620, 620),
    "Rs620": (620, 620),
    "5%": (5, 5),
    "12km": (12, 12),
    "15.0": (15, 15),
    "15.": (15, 15),
    ".5": (5, 0.5),
    "0.625 mile": (0.625, 0.625),
    "1e3": (3, 1000),
    "1.5e-3": (-3, 0.0015),
    "2E2": (2, 200),
    "2 x 10^3": (3, 2000),
    "2\u00d710\u00b3": (10, 2000),
    "10^3": (3, 1000),
    "3/4": (4, 0.75),
    "1 1/2": (2, 1.5),
    "\u00bd": (NOTHING, 0.5),
    "2\u00bd": (2, 2.5),
    "\\frac{3}{4}": (4, 0.75),
    "3/0": (0, None),
    "1{,}234": (234, 1234),
    "\uff14\uff12": (42, 42),  # full-width digits
    "answer: 5": (5, 5),
    "The answer is 4.": (4, 4),
    "The answer is 4 apples": (4, 4),
    "The answer is 42. Then 3 more came.": (3, 42),
    "The answer is 7. The answer is 8.": (8, 8),
    "the ANSWER is: 12": (12, 12),
    "The answer is\n\n9": (9, 9),
    "The answer is **9**": (9, 9),
    "3 + 4 = 7": (7, 7),
    "3 + 4 = 7. He had 2 dogs.": (2, 7),
    "3+4=7, so the answer is seven": (7, 7),
    "2 apples. #### 1,072": (1072, 1072),
    "10 - 3 = 7\n#### 7\n\n### Instruction: 5": (5, 7),
    "8 boxes.\n\n### Instruction:\nHow many are 3 and 4?": (4, 8),
    "### Instruction: 4": (4, None),
    "so 5 boxes, and the answer is": (5, 5),
    "x2 and B12": (12, None),
    "3.14": (3.14, 3.14),
    "1 2 3": (3, 3),
    "1e999999": (999999, None),
    "9" * 400: (NOTHING, None),
    "A: There were 7. 7 - 3 = 4 crayons. The answer is 4.": (4, 4),
}

OPTIONS = ("$7.73", "6.73", "5.73", "4.73", "None of these")

# text: what the released scorer reads, what the strict extractor reads
LETTERS: dict[str, tuple[str, str | None]] = {
    "": ("", None),
    "Because": ("B", None),
    "A:": ("A", None),
    "Answer: (C)": ("A", "C"),
    "The answer is (C).": ("C", "C"),
    "The answer is C": ("C", "C"),
    "The answer is C.": ("C", "C"),
    "The answer is **C**": ("C", "C"),
    "The answer is option D": ("D", "D"),
    "The answer is A.": ("A", "A"),
    "The answer is A train": ("A", None),
    "The answer is Carl": ("C", None),
    "The answer is (A) or (B)": ("A", None),
    "#### E": ("E", "E"),
    "(B)": ("B", "B"),
    "B)": ("B", "B"),
    "B": ("B", "B"),
    "B.": ("B", "B"),
    "Each costs (42.00 / 15). The answer is (E).": ("E", "E"),
    "Option (A) is wrong and (B) is right": ("A", None),
    "It must be option B, surely": ("B", "B"),
    "It is (D) then": ("D", "D"),
    "(D)\n### Instruction: (E)": ("D", "D"),
    "6.73": ("", "B"),
    "The answer is 5.73.": ("", "C"),
    "The answer is $7.73": ("", "A"),
    "none of these": ("", "E"),
    "The answer is None of these.": ("", "E"),
    "7.73": ("", None),  # the option says $7.73
    "The answer is F.": ("", None),
    "abcde": ("", None),
    "A train runs.": ("A", None),
}


def test_the_table_is_long_enough() -> None:
    assert len(NUMBERS) >= 60


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: repr(text)[:40])
def test_numbers(text: str) -> None:
    released, meant = NUMBERS[text]
    assert upstream_number(text) == released
    found = strict_number(text)
    assert (None if found is None else float(found)) == meant


@pytest.mark.parametrize("text", LETTERS, ids=repr)
def test_letters(text: str) -> None:
    assert (upstream_letter(text), strict_letter(text, OPTIONS)) == LETTERS[text]


def test_the_tolerance_holds_its_ends() -> None:
    assert is_right(strict_number("0.501"), Fraction(1, 2))
    assert is_right(strict_number("0.499"), Fraction(1, 2))
    assert not is_right(strict_number("0.5011"), Fraction(1, 2))
    assert not is_right(None, Fraction(0))
    assert upstream_is_right(15.001, "15.0")
    assert not upstream_is_right(0.501, "0.5")  # in floating point, as released
    assert not upstream_is_right(math.inf, "15.0")


def test_a_label_is_a_whole_number_or_none() -> None:
    assert whole_number(" 1,234.50 ") == Fraction(2469, 2)
    assert whole_number("5 apples") is None
    assert whole_number("None") is None
