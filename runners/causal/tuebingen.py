"""The Tuebingen cause-effect pairs (Mooij et al., JMLR 2016): which of two variables changes the other?

Two one-word questions a pair (prompting two; agent adds a system message), or one with two options and step-by-step
reasoning (single). Five pairs of vector-valued variables have weight 0.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace

import numpy as np

from privlm.errors import UsageError
from privlm.results import Result

from . import estimates
from .answers import ONE_WORD, TWO_OPTIONS
from .grading import accuracy, row
from .items import Item, Question
from .sources import KICIMAN, Sources, sent
from .suite import UPSTREAM, Grading, Suite

FOLDER = f"{KICIMAN}/tuebingen"
SYSTEM = "You are a helpful assistant for causal reasoning."
SINGLE = (
    " Which cause-and-effect relationship is more likely?\tA. {A}\tB. {B}\t\tLet's work this out in a step by step way "
    "to be sure that we have the right answer. Then provide your final answer within the tags <Answer>A/B</Answer>."
)
OPTION = "changing {cause} causes a change in {effect}."
ONCE_SENT = (
    (
        "cause a change in the amount of blast furnace slag it contains",
        "cause a change the amount of blast furnace slag it contains",
    ),
    ("connections cause a change in the number of bytes sent", "connections cause a change the number of bytes sent"),
)
"""Two prompts were corrected after the recorded answers had been asked for: (now, then)."""


@dataclass(frozen=True)
class Pair:
    """A pair as in the benchmark's own files. direction: -> when the first variable is the cause."""

    id: str
    first: str
    second: str
    source: str
    direction: str
    weight: float


def read_pairs(sources: Sources) -> list[Pair]:
    """All pairs. Raises UsageError for a pair without weight, with a weight that is no number, or that stands twice."""
    weights = _weights(sources)
    name = f"{FOLDER}/results.txt"
    rows = list(csv.reader(sources.lines(name)[1:]))
    sources.unique(name, [fields[2].strip() for fields in rows])
    pairs = []
    for fields in rows:
        pair_id, first, second, source, direction = (field.strip() for field in fields[2:7])
        if pair_id not in weights:
            raise UsageError(f"{sources.locate(f'{FOLDER}/pairmeta.txt')}: no weight for {pair_id}")
        if direction not in ("->", "<-"):
            raise UsageError(f"{sources.locate(name)}: direction of {pair_id} is '{direction}', not -> or <-")
        pairs.append(Pair(pair_id, first, second, source, direction, weights[pair_id]))
    return pairs


def _weights(sources: Sources) -> dict[str, float]:
    name = f"{FOLDER}/pairmeta.txt"
    weights = {}
    for line in sources.lines(name):
        number, *_, text = line.split()
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise UsageError(f"{sources.locate(name)}: the weight of pair {number} is '{text}', not a number from 0")
        weights[f"pair{number}"] = weight
    return weights


def two_prompts(sources: Sources, pairs: list[Pair]) -> list[Item]:
    """Two items a pair: does the first variable change the second, and the other way round?

    The file's wording varies between pairs; it is sent with only its first letter and the word Please in capitals.
    """
    name = f"{FOLDER}/prompts.txt"
    by_id = {pair.id: pair for pair in pairs}
    prompts: dict[str, list[str]] = {}
    for line in sources.lines(name):
        pair_id, _, text = line.partition(",")
        if pair_id not in by_id:
            raise UsageError(f"{sources.locate(name)}: {pair_id} is no pair of {FOLDER}/results.txt")
        prompts.setdefault(pair_id, []).append(text.strip().capitalize().replace("please", "Please"))
    items = []
    for pair in pairs:
        if len(prompts.get(pair.id, ())) != 2:
            raise UsageError(f"{sources.locate(name)}: {pair.id} needs two prompts, one for each direction")
        for direction, prompt in zip(("->", "<-"), prompts[pair.id], strict=True):
            question = Question(prompt, "Yes" if direction == pair.direction else "No")
            items.append(
                Item(
                    f"{pair.id} {direction}",
                    question,
                    earlier=_once_sent(question),
                    swapped=replace(question, prompt=prompt.replace("yes or no", "no or yes")),
                    unit=pair.id,
                    weight=pair.weight,
                )
            )
    return items


def _once_sent(question: Question) -> tuple[Question, ...]:
    return tuple(
        replace(question, prompt=question.prompt.replace(now, then))
        for now, then in ONCE_SENT
        if now in question.prompt
    )


def single_prompts(sources: Sources, pairs: list[Pair]) -> list[Item]:
    """One item a pair with an option for each direction."""
    name = f"{FOLDER}/comp_prompts_aug.csv"
    rows = sources.table(name, ("pair_id", "cause1", "effect1", "cause2", "effect2"))
    phrases = {row["pair_id"].rstrip(","): row for row in rows}
    missing = [pair.id for pair in pairs if pair.id not in phrases]
    if missing:
        raise UsageError(f"{sources.locate(name)}: no phrases for {', '.join(missing)}")
    items = []
    for pair in pairs:
        row = phrases[pair.id]
        options = tuple(OPTION.format(cause=row[f"cause{n}"], effect=row[f"effect{n}"]) for n in (1, 2))
        questions = [
            Question(sent(SINGLE.format(A=ordered[0], B=ordered[1])), truth, ordered)
            for ordered, truth in (
                (options, "A" if pair.direction == "->" else "B"),
                (options[::-1], "B" if pair.direction == "->" else "A"),
            )
        ]
        items.append(
            Item(
                pair.id,
                questions[0],
                swapped=questions[1],
                variables=(row["cause1"], row["cause2"]),
                unit=pair.id,
                weight=pair.weight,
            )
        )
    return items


def load(sources: Sources, prompting: str) -> Suite:
    """prompting: two, agent, single, or program (its items are those of single)."""
    pairs = read_pairs(sources)
    if prompting in ("single", "program"):
        items, form, temperature, max_tokens, unparsed = single_prompts(sources, pairs), TWO_OPTIONS, 0.7, 512, -1.0
    else:
        items, form, temperature, max_tokens, unparsed = two_prompts(sources, pairs), ONE_WORD, 1.0, 16, 0.0
    return Suite(
        "tuebingen",
        tuple(items),
        form,
        results,
        temperature=temperature,
        max_tokens=max_tokens,
        system=None if prompting == "two" else SYSTEM,
        unparsed_credit=unparsed,
    )


def results(grading: Grading) -> list[Result]:
    """Accuracy of pairs (the mean of the two bits of a pair), plain and weighted."""
    weights = grading.weights
    constants = constant_directions(grading)
    split = grading.suite.name
    rows = accuracy(grading, split, constants)
    if weights.sum() > 0:
        ours = grading.mean_by_unit(grading.credit)
        theirs = grading.mean_by_unit(lambda reply: grading.credit(reply, UPSTREAM))
        always_first = next(iter(constants.values()))
        rows += [
            row("weighted_accuracy", estimates.mean(ours, weights), split),
            row("weighted_accuracy_upstream", estimates.mean(theirs, weights), split),
            Result("baseline_first_weighted", estimates.mean(always_first, weights).value, n=len(weights), split=split),
        ]
    return rows


def constant_directions(grading: Grading) -> dict[str, np.ndarray]:
    """Credit by pair of saying A -> B, or B -> A, of every pair; an item's id or options tell which that is."""
    forward = np.array([_is_forward(replies[0].item) for replies in grading.units.values()], dtype=float)
    return {"->": forward, "<-": 1 - forward}


def _is_forward(item: Item) -> bool:
    if item.question.options:
        return item.question.truth == "A"
    return (item.question.truth == "Yes") == item.id.endswith("->")
