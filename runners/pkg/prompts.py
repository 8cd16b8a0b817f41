"""What guide and black box are asked, by kind of question. The wording is ours; the paper's is summarised in README.md.

Every prompt is filled once, from left to right: a background that looks like a prompt stays text.
"""

from __future__ import annotations

from dataclasses import dataclass

from privlm.data.instructions import TEMPLATES, Instruction

from .questions import Question, listed


@dataclass(frozen=True)
class Wording:
    """Of one kind of question.

    guide: what the guide is told. wanted: of what the black box writes a background itself. label: before the question.
    ask: what the black box is to answer; ask_guided: the same beside a background.
    """

    guide: str
    wanted: str
    label: str
    ask: str
    ask_guided: str


WORDINGS = {
    "claim": Wording(
        "Write a background document in the style of Wikipedia that supports or refutes the statement.",
        "a short background document, in the style of Wikipedia, that helps to tell whether the claim is true",
        "Claim",
        "Is this claim true or false? Answer with one word, true or false.",
        "Going by the background, is this claim true or false? Answer with one word, true or false.",
    ),
    "table": Wording(
        "Write a background table in the style of Wikipedia that answers the question.",
        "a short background table, in the style of Wikipedia, that answers the question",
        "Question",
        "Answer the question in fewer than 5 words.",
        "Refer to the background and answer the question in fewer than 5 words.",
    ),
    "medical": Wording(
        "Write a background document from the medical domain that helps to answer the question.",
        "a short background document from the medical domain that helps to answer the question",
        "Question",
        "Answer with the letter of one of the options, and nothing else.",
        "Refer to the medical background. Answer with the letter of one of the options, and nothing else.",
    ),
    "science": Wording(
        "Write the lecture and the explanation that lead to the answer of the science question.",
        "the lecture and the explanation that lead to the answer of the science question",
        "Question",
        "Answer with the letter of one of the options, and nothing else.",
        "The background gives the reason. Answer with the letter of one of the options, and nothing else.",
    ),
    "question": Wording(
        "Write a background text that helps to answer the question.",
        "a short background text that helps to answer the question",
        "Question",
        "Answer as shortly as possible: with the letter of an option where there are options, else in a few words.",
        "Refer to the background. Answer as shortly as possible: with the letter of an option where there are options, "
        "else in a few words.",
    ),
}
"""data.kind -> how it is asked."""

STATEMENT = {"claim": "Statement"}
"""What the guide's input is called, where it is not `Question`."""

BACKGROUND = {"cot": "Reasoning"}
"""What the black box is told that a guide's text is, where it is not `Background`."""


def guide_prompt(question: Question, kind: str) -> str:
    """What the guide continues, in Alpaca's layout of instruction, input and response."""
    given = f"{STATEMENT.get(kind, 'Question')}: {question.question}"
    if kind == "science":  # the layout of MM-CoT (Zhang et al., arXiv 2302.00923): question, context, choices
        given += f"\nContext: {question.context or 'N/A'}"
    if kind in ("medical", "science") and question.options:
        given += f"\nOptions: {listed(question.options)}"
    return TEMPLATES["alpaca_short"].prompt(Instruction(WORDINGS[kind].guide, given, ""))


def write_prompt(question: Question, kind: str, guide: str) -> str:
    """What the black box is asked where it is its own guide: a chain of thought (cot), or a background (genread;
    Yu et al., arXiv 2209.10063).
    """
    words = WORDINGS[kind]
    if guide == "cot":
        return f"{_question(question, kind)}\n\nThink step by step about how to answer. Write your reasoning only."
    return f"{_question(question, kind)}\n\nWrite {words.wanted}. Write the background only."


def read_prompt(question: Question, kind: str, guide: str, background: str) -> str:
    """What the black box is asked in the end; without a background nothing speaks of one."""
    words = WORDINGS[kind]
    if not background:
        return f"{_question(question, kind)}\n{words.ask}"
    heading = BACKGROUND.get(guide, "Background")
    return f"{heading}: {background}\n\n{_question(question, kind)}\n{words.ask_guided}"


def _question(question: Question, kind: str) -> str:
    lines = [f"Context: {question.context}"] if question.context else []
    lines.append(f"{WORDINGS[kind].label}: {question.question}")
    if question.options:
        lines.append(f"Options: {listed(question.options)}")
    return "\n".join(lines)
