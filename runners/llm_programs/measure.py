"""From the lines of a part to its rows of results, and a line of what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from privlm.config import Config
from privlm.metrics.classification import Estimate, accuracy, majority_class
from privlm.results import Result

from .config import TREE_ROWS
from .parts import Part

TOP_N = (1, 2, 5, 10, 20)


def measure(part: Part, lines: list[dict[str, Any]], config: Config) -> tuple[list[Result], str]:
    """The results of a part, and a line of what they cost."""
    cost = {key: sum(line[key] for line in lines) for key in ("calls", "tokens", "cached", "seconds")}
    statuses = [line["status"] for line in lines]
    facts = [f"{len(lines)} of {len(part.items)}"] if len(lines) < len(part.items) else [str(len(lines))]
    facts[0] += " items"
    if part.gold is None:
        results = _top_n(part, lines, config)
    else:
        results, majority = _accuracy(part, lines, part.gold, config)
        facts.append(majority)
        facts.append(f"{sum(line['answer'] is None for line in lines)} unparsed, {statuses.count('refused')} refused")
    if part.name in TREE_ROWS:
        facts.append(f"{statuses.count('budget_exhausted')} at their budget of {budget_in_words(config)}")
        facts += [f"{sum(line[key] for line in lines)} {key.replace('_', ' ')}" for key in ("forced", "empty_steps")]
    facts.append(f"{cost['calls']:,} calls, {cost['tokens']:,} tokens, {cost['cached']:,} cached")
    facts.append(f"{cost['seconds']:.0f} s")
    return results, f"{part.name}: {', '.join(facts)}"


def _accuracy(
    part: Part, lines: Sequence[dict[str, Any]], gold: dict[str, str], config: Config
) -> tuple[list[Result], str]:
    """Of all items, where an answer that could not be read earns nothing, and of those that could be read; beside them
    the shares that could not be read, and that the model refused (which are among these).
    """
    classes = {"no": 0, "yes": 1, None: -1}
    predictions = np.array([classes[line["answer"]] for line in lines])
    labels = np.array([classes[gold[line["item"]]] for line in lines])
    answer, share = majority_class(labels)
    read = predictions != -1
    refused = np.array([line["status"] == "refused" for line in lines])
    results = [_result(f"accuracy_{part.name}", accuracy(predictions, labels), config)]
    if read.any():
        results.append(_result(f"accuracy_read_{part.name}", accuracy(predictions[read], labels[read]), config))
    for name, holds in (("unparsed", ~read), ("refused", refused)):
        results.append(Result(f"{name}_{part.name}", float(holds.mean()), n=len(lines), split=config.data.split))
    return results, f"always {('no', 'yes')[answer]} {share:.3f}"


def _top_n(part: Part, lines: Sequence[dict[str, Any]], config: Config) -> list[Result]:
    """Share of questions whose true paragraph is among the first n, beside that of a random order."""
    name = part.name.removeprefix("filter_")
    ranks = np.array([line["rank"] for line in lines])
    results = []
    for n in (n for n in TOP_N if n < config.task.num_candidates):
        results.append(_result(f"top{n}_{name}", accuracy(ranks < n, np.ones(len(ranks), dtype=bool)), config))
        if name == config.task.filters[0]:
            results.append(Result(f"top{n}_random", n / config.task.num_candidates))
    return results


def _result(metric: str, estimate: Estimate, config: Config) -> Result:
    return Result(metric, estimate.value, "fraction", estimate.n, estimate.ci_low, estimate.ci_high, config.data.split)


def budget_in_words(config: Config) -> str:
    """What one question may cost."""
    limits = {key: value for key, value in config.task.budget.items() if value is not None}
    return ", ".join(f"{value:,} {key}" for key, value in limits.items()) or "no limit"
