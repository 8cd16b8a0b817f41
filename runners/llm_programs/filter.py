"""Part 1 of the program: which paragraphs may help with a question.

Each filter orders candidates, the best first: a list of (index, score), lower is better, ties in the given order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from privlm.llm.program import AsyncContext

from .prompts import Steps

Ranking = list[tuple[int, float]]
Filter = Callable[[AsyncContext, Steps, str, Sequence[str]], Awaitable[Ranking]]
"""(context, steps, question, paragraphs) -> ranking."""


async def likelihood(ctx: AsyncContext, steps: Steps, question: str, paragraphs: Sequence[str]) -> Ranking:
    """By the mean NLL per token of the question after the paragraph (Algorithm 1): nats per token."""
    scores = await ctx.map(steps.likelihood, [{"paragraph": text, "question": question} for text in paragraphs])
    return _sorted([score.avg_nll for score in scores])


async def black_box(ctx: AsyncContext, steps: Steps, question: str, paragraphs: Sequence[str]) -> Ranking:
    """By the model's word: 0 for a relevant paragraph, 1 for one that is not, 2 where it gave no readable answer."""
    results = await ctx.map(steps.relevance, [{"paragraph": text, "question": question} for text in paragraphs])
    order = {"yes": 0.0, "no": 1.0, None: 2.0}
    return _sorted([order[result.value] for result in results])


async def bm25(ctx: AsyncContext, steps: Steps, question: str, paragraphs: Sequence[str]) -> Ranking:
    """By the words that question and paragraph share (BM25 over the candidates), negated; asks no model."""
    import bm25s

    tokens = bm25s.tokenize([question, *paragraphs], stopwords="en", return_ids=False, show_progress=False)
    retriever = bm25s.BM25()
    retriever.index(tokens[1:], show_progress=False)
    return _sorted([-float(score) for score in retriever.get_scores(tokens[0])])


async def none(ctx: AsyncContext, steps: Steps, question: str, paragraphs: Sequence[str]) -> Ranking:
    """As they come."""
    return [(index, 0.0) for index in range(len(paragraphs))]


FILTERS: dict[str, Filter] = {"likelihood": likelihood, "black_box": black_box, "bm25": bm25, "none": none}


def _sorted(scores: Sequence[float]) -> Ranking:
    return sorted(enumerate(scores), key=lambda pair: pair[1])
