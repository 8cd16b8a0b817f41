"""Part 2 of the program: a search over chains of reasoning steps (Algorithm 2).

Tokens are always greedy; what is searched is which paragraph stands in the prompt at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from privlm.llm.program import AsyncContext, StepResult

from .filter import FILTERS
from .prompts import ANSWERS, Shots, Steps, answer_of_step
from .strategyqa import Paragraph

Criterion = Literal["nll", "delta"]


@dataclass(frozen=True)
class Chain:
    """Steps so far, the criterion's value of each, and the answer once there is one.

    evidence: number of the paragraph that stood in the prompt of each step. forced: the answer is the likelier of the
    two sentences, not the model's own.
    """

    steps: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    evidence: tuple[int, ...] = ()
    answer: str | None = None
    forced: bool = False

    @property
    def rank(self) -> float:
        """Mean over the steps, lower is better; 0 without a step."""
        return sum(self.values) / len(self.values) if self.values else 0.0


@dataclass(frozen=True)
class Settings:
    """criterion: nll, or delta. has_logprobs: the model gives those of the tokens it generates."""

    steps: Steps
    shots: Shots
    criterion: Criterion
    filter: str
    n_keep: int
    max_steps: int
    complete_above: int
    answer_pattern: str
    vote: str
    has_logprobs: bool


async def answer_by_search(
    ctx: AsyncContext, question: str, candidates: Sequence[Paragraph], settings: Settings
) -> dict[str, Any]:
    """The answer (yes, no or None), and how it was found: numbers only."""
    with ctx.span("filter", by=settings.filter) as here:
        ranking = await FILTERS[settings.filter](here, settings.steps, question, [p.text for p in candidates])
        kept = ranking[: settings.n_keep]
        here.note(kept=[candidates[index].id for index, _ in kept], scores=[round(score, 4) for _, score in kept])
    tree = _Tree(question, [candidates[index].text for index, _ in kept], settings)
    found = await ctx.search(
        [Chain()],
        expand=tree.expand,
        rank=lambda chain: chain.rank,
        is_complete=lambda chain: chain.answer is not None,
        enough=lambda complete: len(complete) > settings.complete_above,
    )
    complete = found.complete
    if not complete:  # the budget is spent, or every step was empty
        with ctx.span("forced answer") as here:
            complete = await tree.force(here.beyond_budget(), found.frontier[:1] or [Chain()])
    best = min(complete, key=lambda chain: chain.rank)
    answer = ctx.vote(chain.answer for chain in complete) if settings.vote == "majority" else best.answer
    ctx.note(
        answers=[chain.answer for chain in complete],
        ranks=[round(chain.rank, 4) for chain in complete],
        evidence=list(best.evidence),
        answer=answer,
    )
    return {
        "answer": answer,
        "expansions": found.expansions,
        "complete": len(complete),
        "forced": sum(chain.forced for chain in complete),
        "empty_steps": tree.num_empty,
    }


class _Tree:
    """Makes the children of chains. num_empty: steps of no text, whose children are dropped."""

    def __init__(self, question: str, paragraphs: Sequence[str], settings: Settings) -> None:
        self.question = question
        self.paragraphs = paragraphs
        self.settings = settings
        self.num_empty = 0

    async def expand(self, ctx: AsyncContext, chains: list[Chain]) -> list[list[Chain]]:
        """For each chain one child a paragraph."""
        families = []
        for chain in chains:
            prompts = [self._variables(chain, number) for number in range(len(self.paragraphs))]
            written = await ctx.map(self.settings.steps.reason, prompts)
            numbers = [number for number, result in enumerate(written) if result.value]
            self.num_empty += len(written) - len(numbers)
            values = await self._values(ctx, chain, [(number, written[number]) for number in numbers])
            children = [
                self._child(chain, number, written[number].value, value)
                for number, value in zip(numbers, values, strict=True)
            ]
            ends = [c for c in children if c.answer is None and len(c.steps) == self.settings.max_steps]
            forced = iter(await self.force(ctx, ends))
            families.append([next(forced) if child in ends else child for child in children])
        return families

    async def force(self, ctx: AsyncContext, chains: Sequence[Chain]) -> list[Chain]:
        """The chains with the likelier of the two answer sentences, beside the paragraph of their last step."""
        variables = [self._variables(chain, chain.evidence[-1] if chain.evidence else 0) for chain in chains]
        chosen = await ctx.map(self.settings.steps.force, variables)
        return [
            replace(chain, answer=ANSWERS[choice.index], forced=True)
            for chain, choice in zip(chains, chosen, strict=True)
        ]

    async def _values(self, ctx: AsyncContext, chain: Chain, written: list[tuple[int, StepResult]]) -> list[float]:
        """The criterion of each new step S after its paragraph P and the question with the steps before it, Q.

        nll: nll(S|Q,P). delta: nll(S|Q,P) - nll(S|Q) + nll(S|Q,P) - nll(S|P). A step is scored with the line break
        that ends it, which the model has written as well.
        """
        steps = self.settings.steps
        texts = [self._variables(chain, number) | {"step": _as_written(result)} for number, result in written]
        if self.settings.has_logprobs:
            both = [-sum(result.logprobs) / len(result.logprobs) for _, result in written if result.logprobs]
        else:
            both = [score.avg_nll for score in await ctx.map(steps.given_both, texts)]
        if self.settings.criterion == "nll":
            return both
        question = [{key: value for key, value in text.items() if key != "paragraph"} for text in texts]
        paragraph = [{key: value for key, value in text.items() if key != "question"} for text in texts]
        given_question = await ctx.map(steps.given_question, question)
        given_paragraph = await ctx.map(steps.given_paragraph, paragraph)
        return [
            2 * nll - by_question.avg_nll - by_paragraph.avg_nll
            for nll, by_question, by_paragraph in zip(both, given_question, given_paragraph, strict=True)
        ]

    def _child(self, chain: Chain, number: int, step: str, value: float) -> Chain:
        return Chain(
            (*chain.steps, step),
            (*chain.values, value),
            (*chain.evidence, number),
            answer_of_step(step, self.paragraphs[number], self.settings.answer_pattern),
        )

    def _variables(self, chain: Chain, number: int) -> dict[str, Any]:
        return {
            "examples": self.settings.shots.step,
            "question": self.question,
            "paragraph": self.paragraphs[number],
            "steps": chain.steps,
        }


def _as_written(result: StepResult) -> str:
    return result.value + ("\n" if result.finished else "")
