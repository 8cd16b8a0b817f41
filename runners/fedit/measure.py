"""What is measured of a model: how likely it finds held-out responses, how near its answers come to them, and what a
judge says of its answers to other questions.

Rows of result.json have the split `test` for all held-out rows, the name of a category for its own, and `macro` for the
mean over categories, each of the same weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from privlm.data.contamination import words_of
from privlm.data.instructions import Instruction
from privlm.federated.outcome import Federated
from privlm.job import Stage
from privlm.metrics.estimate import Estimate
from privlm.metrics.exact_match import exact_match
from privlm.metrics.rouge import rouge_l
from privlm.metrics.shares import share
from privlm.metrics.statistic import statistic
from privlm.results import Result

from .answering import Reply
from .judge import Judged

TEST, MACRO, JUDGE = "test", "macro", "judge"
SHORT = ("classification", "closed_qa", "information_extraction")
"""Categories whose responses are short enough for an exact match to say something."""

MEGABYTE = 1e6

LOWEST, HIGHEST = 1, 10
"""Ratings of a judge."""

Groups = Iterator[tuple[str, np.ndarray, np.ndarray]]
"""(split, places of its rows, weight of each of these)."""


def groups(categories: Sequence[str | None], sizes: np.ndarray) -> Groups:
    """All rows; then those of each category, and all of them with weights that make each category count the same.

    sizes: of each row, what its figure is a mean of (tokens, or 1).
    """
    everything = np.arange(len(categories))
    yield TEST, everything, np.ones(len(categories))
    named = np.array([category or "" for category in categories])
    found = sorted(set(named) - {""})
    if not found:
        return
    for category in found:
        places = np.flatnonzero(named == category)
        yield category, places, np.ones(len(places))
    places = np.flatnonzero(named != "")
    weights = {category: 1 / sizes[named == category].sum() for category in found}
    yield MACRO, places, np.array([weights[category] for category in named[places]])


def report_perplexity(
    stage: Stage,
    rows: Sequence[Instruction],
    num_tokens: np.ndarray,
    after: Sequence[float],
    before: Sequence[float] | None,
) -> None:
    """exp of the mean negative log-likelihood of a response token, end of text included, and how training has changed
    that mean: the same rows before and after, so the interval is of the differences.

    num_tokens: of the response of each row. after, before: the mean log-likelihood of these, in nats.
    """
    nll = -np.asarray(after) * num_tokens
    for split, places, weights in groups([row.category for row in rows], num_tokens):
        tokens = num_tokens[places] * weights
        found = perplexity(nll[places] * weights, tokens)
        stage.report(Result.of("perplexity", found, unit="perplexity", split=split))
        if before is not None:
            gain = (nll[places] + np.asarray(before)[places] * num_tokens[places]) * weights
            stage.report(split=split, unit="nats per token", nll_gain=_per_token(-gain, tokens))


def perplexity(nll: np.ndarray, num_tokens: np.ndarray) -> Estimate:
    """exp of the mean over tokens. nll: summed over the tokens of each row, in nats, [N]."""
    return _per_token(nll, num_tokens).mapped(lambda mean: float(np.exp(mean)))


def _per_token(sums: np.ndarray, tokens: np.ndarray) -> Estimate:
    """sum(sums) / sum(tokens) over rows, with the bootstrap's interval: a log-likelihood has no bound."""
    return statistic(lambda a, b, axis=-1: np.sum(a, axis=axis) / np.sum(b, axis=axis), sums, tokens)


def report_answers(stage: Stage, rows: Sequence[Instruction], replies: Sequence[Reply]) -> None:
    """ROUGE-L of the answers, exact match of those that are short, and how many were cut or empty."""
    if not rows:
        return
    pairs = list(zip(rows, replies, strict=True))
    near = np.array([rouge_l(words_of(reply.text), words_of(row.response)) for row, reply in pairs])
    for split, places, weights in groups([row.category for row in rows], np.ones(len(rows))):
        stage.report(split=split, rouge_l=share(near[places], weights=weights))
    counts = Counter(reply.status for reply in replies)
    stage.report(split=TEST, unit="answers", n=len(rows), truncated=counts["length"], empty=counts["empty"])
    short = [pair for pair in pairs if pair[0].category in SHORT]
    for split in (TEST, *sorted({str(row.category) for row, _ in short})):
        right = [exact_match(reply.text, row.response) for row, reply in short if split in (TEST, row.category)]
        if right:
            stage.report(split=split, exact_match=share(right))


def report_budget(stage: Stage, *, steps: int, rows_seen: int) -> None:
    """Of an arm, its clients together: two arms are comparable where it is the same."""
    stage.report(split="train", unit="steps", steps=steps)
    stage.report(split="train", unit="rows", rows_seen=rows_seen)


def report_rounds(stage: Stage, trained: Federated) -> None:
    """The budget, and what travelled; nothing that tells how many clients a secret draw has asked."""
    outcome, sent = trained.outcome, trained.outcome.replies
    stage.report(unit="rounds", rounds=outcome.rounds)
    stage.report(unit="clients", clients=len(trained.federation.clients))
    if outcome.steps is None or outcome.examples is None or not sent:
        return
    report_budget(stage, steps=outcome.steps, rows_seen=outcome.examples)
    up, down = (total / MEGABYTE for total in (outcome.bytes_up or 0, outcome.bytes_down or 0))
    stage.report(unit="MB", upload=up, download=down, upload_per_reply=up / sent)
    stage.report(unit="replies", replies=sent, failures=outcome.failures or 0)


def report_judged(stage: Stage, judged: Judged) -> None:
    """Shares of wins, ties and losses among the pairs that could be read, or the mean rating; what could not be read is
    counted apart. A pair whose two orders disagree is a tie, and a flip.
    """
    calls = Counter(line["status"] for line in judged.lines)
    unread = sum(line["said"] is None and line["status"] != "refused" for line in judged.lines)
    told = {"judge_calls": len(judged.lines), "judge_invalid": unread, "judge_refused": calls["refused"]}
    stage.report(split=JUDGE, unit="calls", n=judged.num_asked, **told)
    if known := [outcome for outcome in judged.outcomes if outcome is not None]:
        ties = ("tie", "flip")
        for name, kinds in {"win": ("win",), "tie": ties, "loss": ("loss",), "flip": ("flip",)}.items():
            found = share([outcome in kinds for outcome in known])
            stage.report(Result.of(f"judge_{name}", found, unit="fraction", split=JUDGE))
    if ours := [ratings[0] for ratings in judged.ratings if ratings[0] is not None]:
        stage.report(split=JUDGE, unit="points", judge_score=mean_rating(ours))
    _report_relative(stage, judged)
    _report_cost(stage, judged.lines)


def mean_rating(ratings: Sequence[int]) -> Estimate:
    """Of ratings from 1 to 10, as the share of the points above the lowest."""
    span = HIGHEST - LOWEST
    return share([(rating - LOWEST) / span for rating in ratings]).mapped(lambda part: LOWEST + span * part)


def _report_relative(stage: Stage, judged: Judged) -> None:
    """The points of this run over those of the other one, on the questions of which both ratings could be read."""
    both = [ratings for ratings in judged.ratings if len(ratings) > 1 and None not in ratings]
    if both:
        ours, theirs = np.array(both, dtype=float).T
        stage.report(split=JUDGE, relative_score=_per_token(ours, theirs))


def _report_cost(stage: Stage, lines: Sequence[dict[str, Any]]) -> None:
    tokens = sum((line["prompt_tokens"] or 0) + (line["completion_tokens"] or 0) for line in lines)
    stage.report(split=JUDGE, unit="tokens", judge_tokens=tokens)
    prices = [line["usd"] for line in lines]
    if prices and None not in prices:
        stage.report(split=JUDGE, unit="USD", judge_usd=sum(prices))
