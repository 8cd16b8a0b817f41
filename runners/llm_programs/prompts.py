"""The steps of the program. The prompts are ours: those of the paper are not published.

The few-shot examples are a variable like any other (`examples`), so that each template shows all that its step sees.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm.errors import UsageError
from privlm.llm.program import ParseError, Step, choice

from .config import ANSWER_SENTENCE

BUILT_IN = Path(__file__).with_name("examples.json")
ANSWERS = ("yes", "no")


def answer_sentence(answer: str) -> str:
    return ANSWER_SENTENCE.format(answer=answer)


@dataclass(frozen=True)
class Example:
    """A worked question of the few-shot prompts."""

    question: str
    evidence: tuple[str, ...]
    steps: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Shots:
    """The examples as the prompts of each kind show them."""

    no_cot: str
    cot: str
    golden: str
    golden_cot: str
    step: str


@dataclass(frozen=True)
class Steps:
    """The calls of the program, with the settings of the task."""

    no_cot: Step
    cot: Step
    golden: Step
    golden_cot: Step
    relevance: Step
    likelihood: Step
    reason: Step
    given_question: Step
    given_paragraph: Step
    given_both: Step
    force: Step


ENDED = re.compile(r"[\"'”*)]*\s*(?:[.!]|$|\n)")
"""After an answer: `the answer is no longer known` is none."""

REASONING = "Reasoning:\n{% for step in steps %}{{ step }}\n{% endfor %}"
"""How a block ends whose next line is a step."""


def make_steps(task: Any, *, has_logprobs: bool) -> Steps:
    """task: the section `task` of the configuration. has_logprobs: the model gives those of the tokens it generates."""
    answer = {"parse": choice(*ANSWERS), "reasks": task.reasks, "max_tokens": 4, "stop": ("\n",)}
    chain = {
        "parse": chain_parser(task.answer_pattern),
        "reasks": task.reasks,
        "max_tokens": task.cot_max_tokens,
        "stop": ("\n\n", "\nQuestion:", "\nEvidence:"),
    }
    question = "Question: {{ question }}\n"
    evidence = "Evidence: {{ paragraph }}\n"
    facts = "Evidence: {{ facts }}\n"
    golden_inputs = ("examples", "facts", "question")
    chain_inputs = ("examples", "question", "paragraph", "steps")
    return Steps(
        no_cot=Step("no_cot", "{{ examples }}" + question + "Answer:", ("examples", "question"), **answer),
        cot=Step("cot", "{{ examples }}" + question + "Reasoning:\n", ("examples", "question"), **chain),
        golden=Step("golden", "{{ examples }}" + facts + question + "Answer:", golden_inputs, **answer),
        golden_cot=Step("golden_cot", "{{ examples }}" + facts + question + "Reasoning:\n", golden_inputs, **chain),
        relevance=Step("relevance", RELEVANCE, ("paragraph", "question"), **answer),
        likelihood=Step("likelihood", "{{ paragraph }}", ("paragraph", "question"), continuation=" {{ question }}"),
        reason=Step(
            "reason",
            "{{ examples }}" + evidence + question + REASONING,
            chain_inputs,
            parse=one_line,
            max_tokens=task.step_max_tokens,
            stop=("\n",),
            logprobs=has_logprobs,
        ),
        given_both=_scored("given_both", evidence + question, chain_inputs),
        given_question=_scored("given_question", question, ("examples", "question", "steps")),
        given_paragraph=_scored("given_paragraph", evidence, ("examples", "paragraph", "steps")),
        force=Step(
            "force",
            "{{ examples }}" + evidence + question + REASONING,
            chain_inputs,
            options=tuple(answer_sentence(option) for option in ANSWERS),
        ),
    )


def _scored(name: str, block: str, inputs: tuple[str, ...]) -> Step:
    return Step(name, "{{ examples }}" + block + REASONING, (*inputs, "step"), continuation="{{ step }}")


RELEVANCE = """\
Paragraph: Honey is made by bees.
Question: Is honey a food for strict vegans?
Is the paragraph relevant to the question? yes

Paragraph: A violin has four strings.
Question: Did Johannes Gutenberg print with electricity?
Is the paragraph relevant to the question? no

Paragraph: {{ paragraph }}
Question: {{ question }}
Is the paragraph relevant to the question?"""


def one_line(output: str) -> str:
    """A step as it was written; a step of nothing stays empty and is dropped by the search."""
    return output.strip()


def chain_parser(pattern: str) -> Any:
    """The answer of a whole chain: the first match of `pattern`, whose group is yes or no and ends its sentence."""
    compiled = re.compile(pattern, re.IGNORECASE | re.MULTILINE)

    def parse(output: str) -> str:
        ended = (match for match in compiled.finditer(output) if ENDED.match(output, match.end(1)))
        found = next(ended, None)
        if found is None or found.group(1).lower() not in ANSWERS:
            raise ParseError(f"no line '{answer_sentence('yes or no')}'")
        return found.group(1).lower()

    return parse


def answer_of_step(step: str, paragraph: str, pattern: str) -> str | None:
    """The answer that a generated step ends with, None for one that goes on.

    A phrase inside a paragraph that the step copies is no answer.
    """
    found = re.search(pattern, step, re.IGNORECASE | re.MULTILINE)
    if found is None or step[found.end() :].strip(" .!") or step in paragraph:
        return None
    answer = found.group(1).lower()
    return answer if answer in ANSWERS else None


def load_shots(path: str | None, num_shots: int) -> Shots:
    """The first `num_shots` examples of a JSON file, or of the built-in one.

    Raises UsageError for a file that is not a list of {question, evidence, steps, answer} with yes or no as answers.
    """
    source = BUILT_IN if path is None else Path(path).expanduser()
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"task.examples: {source} cannot be read as JSON ({error})") from None
    if not isinstance(content, list) or len(content) < num_shots:
        raise UsageError(f"task.examples: {source} must be a list of at least task.num_shots={num_shots} examples")
    examples = [_example(record, f"task.examples: {source} example {i}") for i, record in enumerate(content, start=1)]
    return _show(examples[:num_shots])


def _example(record: Any, where: str) -> Example:
    record = record if isinstance(record, dict) else {}
    for field, kind in {"question": str, "evidence": list, "steps": list}.items():
        if not isinstance(record.get(field), kind) or not record[field]:
            raise UsageError(f"{where}: no field {field} that is a {kind.__name__}")
    if record.get("answer") not in ANSWERS:
        raise UsageError(f"{where}: its answer must be yes or no, for the sentence '{answer_sentence('...')}'")
    return Example(record["question"], tuple(record["evidence"]), tuple(record["steps"]), record["answer"])


def _show(examples: list[Example]) -> Shots:
    def block(example: Example, *, evidence: tuple[str, ...] = (), chain: bool) -> str:
        lines = [f"Evidence: {' '.join(evidence)}"] if evidence else []
        lines.append(f"Question: {example.question}")
        if chain:
            lines += ["Reasoning:", *example.steps, answer_sentence(example.answer)]
        else:
            lines.append(f"Answer: {example.answer}")
        return "\n".join(lines) + "\n\n"

    return Shots(
        no_cot="".join(block(example, chain=False) for example in examples),
        cot="".join(block(example, chain=True) for example in examples),
        golden="".join(block(example, evidence=example.evidence, chain=False) for example in examples),
        golden_cot="".join(block(example, evidence=example.evidence, chain=True) for example in examples),
        step="".join(block(example, evidence=example.evidence[:1], chain=True) for example in examples),
    )
