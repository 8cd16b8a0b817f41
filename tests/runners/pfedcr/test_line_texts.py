"""Alphabets, what is compared of a text, and how far a reading is from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from privlm.runners.pfedcr.alphabet import (
    BLANK,
    Alphabet,
    normalised,
    read_alphabet,
    read_simplified,
    require_same,
    union,
)
from privlm.runners.pfedcr.contents import KINDS, WORDS, text_of
from privlm.runners.pfedcr.frames import NUM_FRAMES, frames_needed
from privlm.runners.pfedcr.rendered import LONG, SHORT, balanced_texts
from privlm.runners.pfedcr.scores import Scores, edit_distance, few_shot, matched

from privlm.errors import UsageError

TEXTS = st.text("ab京号1", max_size=8)


def test_an_alphabet_is_the_same_whoever_declares_it_and_has_no_class_for_the_blank() -> None:
    first, second = union({"a": "号京1", "b": "b"}), union({"b": "b1", "a": "京号"})
    assert first == second
    assert first.num_classes == 5
    assert BLANK not in first.classes(first.symbols)
    assert first.text(first.classes("号1京b")) == "号1京b"


def test_another_alphabet_is_refused_with_the_difference() -> None:
    with pytest.raises(UsageError, match=r"alphabet.txt of client bank is another .* lacks '号' and has also 'x'"):
        require_same(Alphabet.of("1京x"), Alphabet.of("1京号"), "alphabet.txt of client bank")


def test_characters_that_no_normalised_text_has_are_no_alphabet() -> None:
    with pytest.raises(UsageError, match="'A' never occurs"):
        Alphabet.of("aA")
    with pytest.raises(UsageError, match="no character"):
        Alphabet.of("")


@pytest.mark.parametrize(
    ("text", "same"),
    [("１２号", "12号"), (" 京 市\t", "京市"), ("ABC", "abc"), ("京\u200b市\x00", "京市"), ("㈱", "(株)"), ("　", "")],
)
def test_forms_of_one_text_are_one(text: str, same: str) -> None:
    assert normalised(text) == same


def test_traditional_forms_are_read_as_the_table_says(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_bytes("\ufeff號\t号\r\n區\t区\r\n".encode())
    assert normalised("東區1號", read_simplified(path)) == "東区1号"
    path.write_text("號 号\n")
    with pytest.raises(UsageError, match="line 1: not one character, a tab and one character"):
        read_simplified(path)


def test_an_alphabet_file_may_have_any_line_ends_and_a_mark_at_its_start(tmp_path: Path) -> None:
    path = tmp_path / "alphabet.txt"
    path.write_bytes("\ufeff京市\r\n号".encode())
    assert Alphabet.of(read_alphabet(path)) == Alphabet.of("京市号")


@pytest.mark.parametrize(("name", "size"), [("small", 52), ("large", 122)])
def test_contents_are_of_the_alphabet_and_each_organisation_sees_a_part_of_it(name: str, size: int) -> None:
    words = WORDS[name]
    assert len(set(words.alphabet)) == len(words.alphabet) == size
    assert Alphabet.of(words.alphabet).num_classes == size + 1
    for organisation in KINDS:
        rng = np.random.default_rng(0)
        seen = set("".join(text_of(organisation, words, rng, mixed=False) for _ in range(2000)))
        assert seen < set(words.alphabet)
        if name == "small":
            assert 26 <= len(seen) <= 32


def test_mixed_contents_are_own_ones_a_little_more_than_half_the_time() -> None:
    rng = np.random.default_rng(0)
    texts = [text_of("hospital", WORDS["small"], rng, mixed=True) for _ in range(2000)]
    assert 0.5 < np.mean([text.endswith("床") for text in texts]) < 0.6
    assert 0.1 < np.mean([text.endswith("号") for text in texts]) < 0.2


@pytest.mark.parametrize("num_lines", [1, 20, 160, 2000])
@pytest.mark.parametrize("sizes", [SHORT, LONG])
def test_virtual_texts_have_every_character_about_equally_often(num_lines: int, sizes: tuple[int, int]) -> None:
    alphabet = Alphabet.of(WORDS["small"].alphabet)
    texts = balanced_texts(alphabet, num_lines, sizes, np.random.default_rng(0))
    counts = [sum(text.count(symbol) for text in texts) for symbol in alphabet.symbols]
    assert len(texts) >= num_lines
    assert {len(text) for text in texts} <= set(range(sizes[0], sizes[1] + 1))
    assert max(counts) <= 1.1 * min(counts)


def test_frames_are_half_the_width_and_repeats_need_one_more() -> None:
    assert [NUM_FRAMES["crnn_small"](width) for width in (1, 2, 101)] == [1, 1, 51]
    assert frames_needed("") == 0
    assert frames_needed("1122") == 6


@given(TEXTS, TEXTS)
def test_edit_distance_is_a_distance(first: str, second: str) -> None:
    assert edit_distance(first, first) == 0
    assert edit_distance(first, second) == edit_distance(second, first)
    assert abs(len(first) - len(second)) <= edit_distance(first, second) <= max(len(first), len(second))
    assert sum(matched(first, second)) >= len(first) - edit_distance(first, second)


def test_edit_distance_of_known_pairs() -> None:
    assert [edit_distance(*pair) for pair in (("kitten", "sitting"), ("", "ab"), ("ab", "ba"))] == [3, 2, 2]


def test_accuracy_counts_edits_over_all_characters_and_is_never_below_zero() -> None:
    scores = Scores.of(["ab", "", "cc"], ["ab", "ab", "c"])
    assert scores.character_accuracy().value == pytest.approx(1 - 3 / 5)
    assert scores.line_accuracy().value == pytest.approx(1 / 3)
    assert scores.similarity().value == pytest.approx((1 + 0 + 0.5) / 3)
    assert Scores.of(["xxxx"], ["a"]).character_accuracy().value == 0


def test_nothing_read_of_nothing_is_right() -> None:
    scores = Scores.of([""], [""])
    assert (scores.line_accuracy().value, scores.similarity().value) == (1, 1)


def test_rare_characters_are_those_that_the_client_saw_less_often() -> None:
    assert few_shot(["京1", "沪1"], ["京1", "1"], seen="京沪沪111", fewer_than=3) == (1, 2)
    assert few_shot(["京1"], ["京1"], seen="京京京111", fewer_than=3) == (0, 0)
