"""ROUGE-L and exact match against hand-worked values and the table that everybody fills in."""

import random

import pytest

from privlm.data.contamination import words_of
from privlm.metrics.exact_match import exact_match, normalised
from privlm.metrics.rouge import lcs_length, rouge_l

pytestmark = pytest.mark.torch_free


def lcs_by_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize(
    ("candidate", "reference", "f1"),
    [
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("the gunman police killed", "police killed the gunman", 2 * 2 / 8),
        ("The cat sat.", "the CAT sat on the mat", 2 * 3 / 9),
        ("我喜欢猫", "我喜欢狗", 2 * 3 / 8),
        ("東京 is big", "東京 is small", 2 * 3 / 8),
        ("nothing shared", "other words", 0),
        ("same words", "same words", 1),
        ("", "words", 0),
        ("!?", "!?", 0),
    ],
)
def test_worked_examples(candidate, reference, f1):
    assert rouge_l(words_of(candidate), words_of(reference)) == pytest.approx(f1)


def test_the_length_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(300):
        a, b = (rng.choices("abcdefg"[: rng.randint(1, 7)], k=rng.randint(0, 90)) for _ in range(2))
        assert lcs_length(a, b) == lcs_by_table(a, b)


def test_it_is_symmetric_and_between_0_and_1_and_a_word_more_in_both_raises_it():
    rng = random.Random(1)
    for _ in range(100):
        a, b = (rng.choices("abcd", k=rng.randint(1, 30)) for _ in range(2))
        assert 0 <= rouge_l(a, b) == rouge_l(b, a) <= 1
        assert rouge_l([*a, "z"], [*b, "z"]) >= rouge_l(a, b)
        assert rouge_l(a, a) == 1


def test_exact_match_knows_no_case_articles_or_punctuation():
    assert normalised(" The  Beatles! ") == "beatles"
    assert exact_match("a Pluto.", "pluto")
    assert not exact_match("Pluto and Mars", "Pluto")
    assert not exact_match("...", "!")  # nothing is no answer
