"""Actual causes: is an action a necessary, a sufficient cause of an event? 15 vignettes of the literature, 14 new ones.

The new ones (vignettes_lab) tell the same structures in a chemistry laboratory, out of reach of memory.
"""

from __future__ import annotations

from dataclasses import replace

from privlm.errors import UsageError
from privlm.results import Result

from .answers import TAGGED_YES_NO
from .grading import accuracy
from .items import Item, Question
from .sources import KICIMAN, Sources, sent
from .suite import Grading, Suite

FOLDER = f"{KICIMAN}/actual_causality"
PARTS = {"nec": "necessary", "suff": "sufficient"}


def load(sources: Sources, *, lab: bool) -> Suite:
    """lab: the new vignettes."""
    suffix = "_lab" if lab else ""
    name = f"vignettes{suffix}"
    labels = f"{FOLDER}/groundtruth{suffix}.csv"
    prompts = sources.table(f"{FOLDER}/prompts{suffix}.csv", ("pair_id", "prompt"))
    truths = sources.table(labels, ("pair_id", "ans_type", "groundtruth"))
    if [row["pair_id"] for row in prompts] != [row["pair_id"] for row in truths]:
        raise UsageError(f"{sources.locate(labels)}: not the vignettes of prompts{suffix}.csv, in its order")
    items = []
    for asked, labelled in zip(prompts, truths, strict=True):
        part, truth = PARTS[labelled["ans_type"]], labelled["groundtruth"].strip()  # the file has "Yes "
        if truth not in ("Yes", "No") or f"a {part} cause" not in asked["prompt"]:
            raise UsageError(
                f"{sources.locate(labels)}: {asked['pair_id']} {labelled['ans_type']} does not fit its prompt, or is "
                "neither Yes nor No"
            )
        question = Question(sent(asked["prompt"]), truth)
        swapped = replace(question, prompt=question.prompt.replace("Yes/No", "No/Yes"))
        items.append(Item(f"{asked['pair_id']} {part}", question, swapped=swapped, part=part))
    return Suite(
        name,
        tuple(items),
        TAGGED_YES_NO,
        results,
        temperature=0.7,
        max_tokens=512,
        unparsed_credit=0.5,
    )


def results(grading: Grading) -> list[Result]:
    """Necessary and sufficient causes apart; a part of which nothing was asked has no rows."""
    parts = {part: grading.part(part) for part in PARTS.values()}
    return [
        row
        for part, graded in parts.items()
        if graded.replies
        for row in accuracy(graded, f"{grading.suite.name} {part}")
    ]
