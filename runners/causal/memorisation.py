"""Has the model memorised the table of the Tuebingen pairs? It completes rows of which it sees the first cells."""

from __future__ import annotations

import re

from privlm.results import Result

from . import estimates
from .answers import LAST_TAG, AnswerFormat
from .grading import asked, row
from .items import Item, Question
from .sources import Sources
from .suite import Grading, Reply, Suite
from .tuebingen import Pair, read_pairs

PROMPT = (
    "This is a row of the table of the Tuebingen cause-effect pairs benchmark. Its columns are id, variable A, "
    "variable B, source of the data, direction (-> when A causes B, <- when B causes A). A complete row:\n{example}"
    "\n\nComplete this row, whose last two cells are missing:\n{known} | ? | ?\n\nProvide the two missing cells "
    "within the tags <Answer>source | direction</Answer>."
)


def load(sources: Sources) -> Suite:
    """All rows but the first, which is the example."""
    example, *pairs = read_pairs(sources)
    items = []
    for pair in pairs:
        prompt = PROMPT.format(example=f"{_known(example)} | {_missing(example)}", known=_known(pair))
        items.append(Item(pair.id, Question(prompt, _canonical(_missing(pair)))))
    return Suite("memorisation", tuple(items), AnswerFormat(_read, _read), results, temperature=0.0, max_tokens=64)


def _known(pair: Pair) -> str:
    return f"{pair.id} | {pair.first} | {pair.second}"


def _missing(pair: Pair) -> str:
    return f"{pair.source} | {pair.direction}"


def _canonical(cells: str) -> str:
    return " | ".join(" ".join(cell.split()).casefold() for cell in cells.split("|"))


def _read(text: str, question: Question) -> str | None:
    tags = LAST_TAG.findall(text)
    if not tags or not re.fullmatch(r"[^|]+\|\s*(->|<-)\s*", tags[-1]):
        return None
    return _canonical(tags[-1])


def results(grading: Grading) -> list[Result]:
    """Share of exact cells and of exact rows (case and spaces aside), and what a guess of the direction would get."""
    split = "memorisation"

    def exact_cells(reply: Reply) -> float:
        said = grading.label(reply) or "|"
        pairs = zip(said.split(" | "), reply.question.truth.split(" | "), strict=False)
        return sum(said_cell == cell for said_cell, cell in pairs) / 2

    forward = grading.mean_by_unit(lambda reply: float(reply.question.truth.endswith("->")))
    return [
        row("exact_cells", estimates.mean(grading, exact_cells), split),
        row("exact_rows", estimates.mean(grading, grading.credit), split),
        Result("baseline_majority", float(forward.mean()) / 2, "fraction", len(forward), split=split),
        *asked(grading, split),
    ]
