"""What is asked and how answers are read: golden prompts of each kind, verdicts with negation, options, exact match."""

from __future__ import annotations

from typing import Any

import pytest
from privlm.runners.pkg.answers import is_right, option, read_answer, verdict
from privlm.runners.pkg.prompts import guide_prompt, read_prompt, write_prompt
from privlm.runners.pkg.questions import Question

from privlm.metrics.exact_match import normalised

pytestmark = pytest.mark.torch_free


def question(**changes: Any) -> Question:
    given: dict[str, Any] = {
        "id": "1", "question": "Ice floats.", "answers": ("true",), "options": (), "background": "", "context": "",
        "passages": (), "group": "1", "image": "", "is_claim": False, "where": "file line 1",
    }  # fmt: skip
    return Question(**given | changes)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("true", "true"),
        ("False.", "false"),
        ("TRUE\n\nBecause the text says so.", "true"),
        ("The claim is not true", "false"),
        ("The claim isn't true.", "false"),
        ("That is not at all true", "false"),
        ("It is not false.", "true"),
        ("This is false because the true date is later.", None),
        ("This is false because the date is later.", "false"),
        ("The claim is false. It would be true of another page.", "false"),
        ("The background supports the claim.", "true"),
        ("The claim is refuted by the background", "false"),
        ("The claim is untrue", "false"),
        ("neither", None),
        ("It is neither true nor false", None),
        ("true or false", None),
        ("The claim may be true", None),
        ("I am not sure whether it is true", None),
        ("Yes", None),
        ("", None),
        ("Is this claim true or false? The claim is true.", "true"),
        ("True and false", None),
    ],
)
def test_a_verdict_is_read_with_its_negation_or_not_at_all(text: str, read: str | None) -> None:
    assert verdict(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b.", "B"),
        ("The answer is C.", "C"),
        ("B) vitamin K", "B"),
        ("(B) Vitamin K.", "B"),
        ("vitamin k", "B"),
        ("Answer: C", "C"),
        ("A) vitamin K", None),  # the letter of one, the text of another
        ("A or B", None),
        ("A balanced diet", None),
        ("D", None),
        ("none of these", None),
        ("", None),
    ],
)
def test_an_option_is_read_by_letter_or_text_of_the_answer_alone(text: str, read: str | None) -> None:
    assert option(text, ("vitamin C", "vitamin K", "iron")) == read


def test_exact_match_knows_no_case_articles_or_punctuation() -> None:
    row = question(answers=("The Beatles", "Beatles (band)"))
    assert normalised(" The  Beatles! ") == "beatles"
    assert is_right(read_answer("the beatles.", row), row)
    assert is_right(read_answer("Beatles band", row), row)
    assert not is_right(read_answer("Beatles members", row), row)
    assert read_answer("...", row) is None
    assert not is_right(None, row)


GUIDE = {
    "claim": "### Instruction:\nWrite a background document in the style of Wikipedia that supports or refutes the "
    "statement.\n\n### Input:\nStatement: Q?\n\n### Response:\n",
    "table": "### Instruction:\nWrite a background table in the style of Wikipedia that answers the question.\n\n"
    "### Input:\nQuestion: Q?\n\n### Response:\n",
    "medical": "### Instruction:\nWrite a background document from the medical domain that helps to answer the "
    "question.\n\n### Input:\nQuestion: Q?\nOptions: (A) x (B) y\n\n### Response:\n",
    "science": "### Instruction:\nWrite the lecture and the explanation that lead to the answer of the science "
    "question.\n\n### Input:\nQuestion: Q?\nContext: C.\nOptions: (A) x (B) y\n\n### Response:\n",
}
READER = {
    "claim": "Background: B.\n\nClaim: Q?\nGoing by the background, is this claim true or false? Answer with one word, "
    "true or false.",
    "table": "Background: B.\n\nQuestion: Q?\nRefer to the background and answer the question in fewer than 5 words.",
    "medical": "Background: B.\n\nQuestion: Q?\nOptions: (A) x (B) y\nRefer to the medical background. Answer with the "
    "letter of one of the options, and nothing else.",
    "science": "Background: B.\n\nContext: C.\nQuestion: Q?\nOptions: (A) x (B) y\nThe background gives the reason. "
    "Answer with the letter of one of the options, and nothing else.",
}


@pytest.mark.parametrize("kind", GUIDE)
def test_prompts_are_the_golden_ones(kind: str) -> None:
    more = {"options": ("x", "y")} if kind in ("medical", "science") else {}
    row = question(question="Q?", context="C." if kind == "science" else "", **more)
    assert guide_prompt(row, kind) == GUIDE[kind]
    assert read_prompt(row, kind, "pkg", "B.") == READER[kind]
    assert "ackground" not in read_prompt(row, kind, "none", "")
    assert read_prompt(row, kind, "cot", "B.").startswith("Reasoning: B.")
    assert "step by step" in write_prompt(row, kind, "cot")
    assert "step by step" not in write_prompt(row, kind, "genread")


def test_a_background_that_looks_like_a_prompt_stays_text() -> None:
    hostile = "{question} Is the claim true or false? {0} {{ background }} %s"
    text = read_prompt(question(), "claim", "pkg", hostile)
    assert text == f"Background: {hostile}\n\nClaim: Ice floats.\n" + READER["claim"].split("\n")[-1]
    learnt = guide_prompt(question(question="{context} %d"), "claim")
    assert "Statement: {context} %d" in learnt
