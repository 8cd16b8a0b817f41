"""The parts of a run: for each row its program and its items, and what is kept of an item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privlm.config import Config
from privlm.llm.program import AsyncContext, Step
from privlm.llm.program.items import Program

from .candidates import draw_distractors, filter_candidates, tree_candidates
from .config import TREE_ROWS
from .filter import FILTERS
from .prompts import Steps, load_shots, make_steps
from .search import Settings, answer_by_search
from .strategyqa import Dataset, Paragraph, Question


@dataclass(frozen=True)
class Part:
    """items: id of a question (and a number, where a row asks several things about it) -> arguments of the program.

    gold: the right answer of each item, yes or no; None for a filter, which ranks.
    """

    name: str
    program: Program
    items: dict[str, tuple[Any, ...]]
    gold: dict[str, str] | None


def make_parts(config: Config, data: Dataset, *, has_logprobs: bool) -> list[Part]:
    """The parts in the order of task.rows. Raises UsageError for a file of examples that cannot be used."""
    task = config.task
    steps = make_steps(task, has_logprobs=has_logprobs)
    shots = load_shots(task.examples, task.num_shots)
    parts = []
    for row in task.rows:
        if row == "filter":
            parts += [_filter_part(name, config, data, steps) for name in task.filters]
        elif row == "relevance":
            parts.append(_relevance_part(config, data, steps))
        elif row in TREE_ROWS:
            settings = Settings(
                steps=steps,
                shots=shots,
                criterion="delta" if row == "tree_delta" else "nll",
                filter=task.filter,
                n_keep=task.n_keep,
                max_steps=task.max_steps,
                complete_above=task.complete_above,
                answer_pattern=task.answer_pattern,
                vote=task.vote,
                has_logprobs=has_logprobs,
            )
            parts.append(_tree_part(row, config, data, settings))
        else:
            variables = {"examples": getattr(shots, row)}
            step: Step = getattr(steps, row)
            asked = {question.id: (step, variables | _asked(row, question)) for question in data.questions}
            parts.append(Part(row, ask, asked, _gold(data.questions)))
    return parts


async def ask(ctx: AsyncContext, step: Step, variables: dict[str, Any]) -> dict[str, Any]:
    """The rows of one call: the answer as the step reads it."""
    return {"answer": (await ctx.generate(step, **variables)).require()}


async def rank(
    ctx: AsyncContext, steps: Steps, name: str, question: str, candidates: Sequence[Paragraph], place: int
) -> dict[str, Any]:
    """The rank (0 is first) that a filter gives to the true paragraph, which is number `place` of the candidates."""
    ranking = await FILTERS[name](ctx, steps, question, [paragraph.text for paragraph in candidates])
    ids = [candidates[index].id for index, _ in ranking]
    ctx.note(ranking=ids, true=candidates[place].id)
    return {"rank": ids.index(candidates[place].id)}


def _filter_part(name: str, config: Config, data: Dataset, steps: Steps) -> Part:
    items = {
        question.id: (
            steps,
            name,
            question.text,
            *filter_candidates(question, data.pool, config.task.num_candidates, config.seed),
        )
        for question in data.questions
    }
    return Part(f"filter_{name}", rank, items, None)


def _relevance_part(config: Config, data: Dataset, steps: Steps) -> Part:
    """Each question with a true paragraph and with one of another question: balanced pairs."""
    items: dict[str, tuple[Any, ...]] = {}
    gold = {}
    for question in data.questions:
        pair = {"yes": question.paragraphs[0], "no": draw_distractors(question, data.pool, 1, config.seed)[0]}
        for answer, paragraph in pair.items():
            item = f"{question.id}:{answer}"
            items[item] = (steps.relevance, {"paragraph": paragraph.text, "question": question.text})
            gold[item] = answer
    return Part("relevance", ask, items, gold)


def _tree_part(row: str, config: Config, data: Dataset, settings: Settings) -> Part:
    questions = data.questions[: config.task.num_tree_questions]
    items = {
        question.id: (
            question.text,
            tree_candidates(question, data.pool, config.task.num_candidates, config.seed),
            settings,
        )
        for question in questions
    }
    return Part(row, answer_by_search, items, _gold(questions))


def _asked(row: str, question: Question) -> dict[str, str]:
    facts = {"facts": " ".join(paragraph.text for paragraph in question.paragraphs)}
    return {"question": question.text} | (facts if row.startswith("golden") else {})


def _gold(questions: Sequence[Question]) -> dict[str, str]:
    return {question.id: "yes" if question.answer else "no" for question in questions}
