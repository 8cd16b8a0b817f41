"""What training and test texts share, in any script."""

from __future__ import annotations

import pytest

from privlm.data.contamination import grams, normalised, overlap, placed_words, words_of

pytestmark = pytest.mark.torch_free

CHINESE = ["小明有三个苹果又买了四个现在有几个", "一辆火车每小时行驶六十公里三小时行驶多远"]


def test_questions_of_other_scripts_are_told_apart() -> None:
    assert len({normalised(text) for text in CHINESE}) == 2
    shared = overlap(CHINESE, [CHINESE[0] + "？", "小红有五本书"])
    assert (shared.exact_train, shared.exact_test) == (1, 1)
    assert (shared.gram_train, shared.gram_test) == (1, 1)
    assert overlap(["Кто это?"], ["Что это?"]).exact_test == 0


def test_signs_alone_are_no_question() -> None:
    assert overlap(["?!", "..."], ["?"]).exact_test == 0


def test_case_width_and_signs_make_no_difference() -> None:
    assert normalised("Größe: ＡＢＣ 1/2!") == normalised("GRÖSSE abc 12")
    assert words_of("Don't STOP_now") == ["don", "t", "stop", "now"]
    assert words_of("买4个apples") == ["买", "4", "个", "apples"]
    assert [text[begin:end] for text in ["Äpfel, Öl"] for _, begin, end in placed_words(text)] == ["Äpfel", "Öl"]
    assert grams(["a", "b", "c"], 2) == {"a b", "b c"}
