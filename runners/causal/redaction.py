"""Which words of the prompt matter? The single prompt of the Tuebingen pairs with one random word left out."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np

from privlm.results import Result

from . import estimates, tuebingen
from .grading import asked, row
from .items import Item
from .sources import Sources
from .suite import Grading, Suite

WHOLE = "whole prompt"
VARIABLE = "variable"
WORD = re.compile(r"\S+")
TEMPLATE = frozenset(
    WORD.findall(
        tuebingen.SINGLE.format(A="changing {} causes a change in {}.", B="changing {} causes a change in {}.")
    )
)


def load(sources: Sources, seed: int) -> Suite:
    """Each pair asked twice: with the whole prompt, and without one word, drawn by `seed`."""
    whole = tuebingen.load(sources, "single")
    rng = random.Random(seed)
    items: list[Item] = []
    for item in whole.items:
        prompt = item.question.prompt
        word = rng.choice(list(WORD.finditer(prompt)))
        shorter = replace(item.question, prompt=prompt[: word.start()] + prompt[word.end() :].removeprefix(" "))
        kind = _plain(word.group()) if word.group() in TEMPLATE else VARIABLE
        items.append(replace(item, id=f"{item.id} whole", swapped=None, part=WHOLE))
        items.append(replace(item, id=f"{item.id} shorter", question=shorter, swapped=None, part=kind))
    return replace(whole, name="redaction", items=tuple(items), results=results)


def _plain(word: str) -> str:
    return "answer tag" if "<" in word else word.strip(".,?").lower()


def results(grading: Grading) -> list[Result]:
    """Accuracy with and without the word, the loss over all pairs, and the loss for each word left out; credits of
    several samples are averaged.
    """
    credits: dict[str, tuple[list[float], list[float]]] = {}
    words = {}
    for pair, replies in grading.units.items():
        for reply in replies:
            whole, shorter = credits.setdefault(pair, ([], []))
            (whole if reply.item.part == WHOLE else shorter).append(grading.credit(reply))
            if reply.item.part != WHOLE:
                words[pair] = reply.item.part
    pairs = [pair for pair, both in credits.items() if all(both)]
    rows: list[Result] = []
    if pairs:
        table = np.array([[np.mean(credit) for credit in credits[pair]] for pair in pairs])
        losses = table[:, 0] - table[:, 1]
        rows += [
            row("accuracy", estimates.mean(table[:, 1]), "redaction"),
            row("accuracy_whole", estimates.mean(table[:, 0]), "redaction"),
            row("loss", estimates.mean(losses), "redaction"),
        ]
        for word in sorted(set(words.values())):
            chosen = losses[[words[pair] == word for pair in pairs]]
            if len(chosen):
                rows.append(row("loss", estimates.mean(chosen), f"redaction {word}"))
    return [*rows, *asked(grading, "redaction")]
