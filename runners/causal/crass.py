"""CRASS (Frohberg and Binder, LREC 2022): what would have happened if? 274 questions with 3 or 4 options."""

from __future__ import annotations

import re

from privlm.errors import UsageError

from .answers import CRASS
from .grading import accuracy
from .items import Item, Question
from .sources import KICIMAN, Sources, sent
from .suite import Suite

FILE = f"{KICIMAN}/crass/prompts.csv"
SYSTEM = "You are a helpful assistant for counterfactual reasoning."
OPTION = re.compile(r"^([A-D]): (.*)$", re.MULTILINE)


def load(sources: Sources) -> Suite:
    """The options stand in the order in which the authors shuffled them."""
    rows = sources.table(FILE, ("qid", "prompt", "groundtruth"))
    sources.unique(FILE, [row["qid"] for row in rows])
    items = []
    for row in rows:
        prompt, truth = sent(row["prompt"]), row["groundtruth"].strip()
        options = tuple(text for _, text in OPTION.findall(prompt))
        if truth not in "ABCD"[: len(options)]:
            raise UsageError(f"{sources.locate(FILE)}: question {row['qid']} has no option {truth}")
        items.append(Item(row["qid"], Question(prompt, truth, options), swapped=_reversed(prompt, truth, options)))
    return Suite(
        "crass",
        tuple(items),
        CRASS,
        lambda grading: accuracy(grading, "crass"),
        temperature=0.1,
        max_tokens=512,
        system=SYSTEM,
        unparsed_credit=0.33,
    )


def _reversed(prompt: str, truth: str, options: tuple[str, ...]) -> Question:
    """The same question with its options from last to first."""
    letters = "ABCD"[: len(options)]
    texts = iter(options[::-1])
    prompt = OPTION.sub(lambda option: f"{option[1]}: {next(texts)}", prompt)
    return Question(prompt, letters[::-1][letters.index(truth)], options[::-1])
