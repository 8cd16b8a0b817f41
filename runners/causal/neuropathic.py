"""The neuropathic pain graph (Tu et al., NeurIPS 2019): 221 nodes, 475 causal links, from nerve roots to symptoms."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from privlm.errors import UsageError
from privlm.results import Result

from . import estimates
from .answers import NEUROPATHIC, YES_ANYWHERE
from .grading import accuracy, row
from .items import Item, Question
from .sources import KICIMAN, Sources, sent
from .suite import Grading, Suite

FOLDER = f"{KICIMAN}/neuropathic"
EXPERT = "You are an expert on neuropathic pain diagnosis."
PAIR = (
    "You are a helpful assistant to a neuropathic pain diagnosis expert. Which cause-and-effect relationship is more "
    "likely?\tA. {A}\tB. {B}\t\tLet's work this out in a step by step way to be sure that we have the right answer. "
    "Then provide your final answer within the tags <Answer>A/B</Answer>."
)
ONE_SIDE = "Does {cause} cause {effect}? Please answer in a single word: Yes or No."
OPTION = re.compile(r"([A-C])[.] (.*)")

Spelling = Callable[[str], str]


def _in_full(node: str) -> str:
    """`L C7` is a nerve root, `R Foot pain` a symptom on the right."""
    node = re.sub(r"^([LR] [A-Z]\d+)$", r"\1 Radiculopathy", node)
    return re.sub(r"^R ", "Right ", re.sub(r"^L ", "Left ", node))


def _as_pain(node: str) -> str:
    return re.sub("discomfort|disorder|problems", "pain", _in_full(node), flags=re.IGNORECASE)


def _as_symptoms(node: str) -> str:
    return _in_full(node).replace("problems", "problem symptoms")


SPELLINGS: tuple[Spelling, ...] = (_as_pain, _in_full, _as_symptoms)
"""How the authors spelled a node: in the prompts they released, then in those they had sent earlier."""


def read_links(sources: Sources) -> list[tuple[str, str]]:
    """(cause, effect) of each link. Raises UsageError that lists the ends which are no nodes of the file."""
    name = f"{FOLDER}/data.json"
    graph = sources.json(name)
    nodes = {node["id"] for node in graph["nodes"]}
    links = [(link["source"], link["target"]) for link in graph["links"]]
    unknown = sorted({end for link in links for end in link} - nodes)
    if unknown:
        raise UsageError(f"{sources.locate(name)}: links of unknown nodes: {', '.join(unknown)}")
    sources.unique(name, [f"{cause} -> {effect}" for cause, effect in links])
    return links


def pair_question(cause: str, effect: str, right: str) -> Question:
    """The question with the true direction as option `right`."""
    true, false = f"{cause} causes {effect}.", f"{effect} causes {cause}."
    options = (true, false) if right == "A" else (false, true)
    return Question(sent(PAIR.format(A=options[0], B=options[1])), right, options)


def load_pairs(sources: Sources, seed: int) -> Suite:
    """475 links, the order of the options drawn by `seed`."""
    rng = random.Random(seed)
    items = []
    for cause, effect in read_links(sources):
        right, wrong = rng.sample("AB", 2)
        worded = [(spell(cause), spell(effect)) for spell in SPELLINGS]
        items.append(
            Item(
                f"{cause} -> {effect}",
                pair_question(*worded[0], right),
                earlier=tuple(pair_question(*words, letter) for words in dict.fromkeys(worded) for letter in "AB"),
                swapped=pair_question(*worded[0], wrong),
            )
        )
    return Suite(
        "neuropathic_pair",
        tuple(items),
        NEUROPATHIC,
        lambda grading: accuracy(grading, "neuropathic_pair"),
        temperature=0.7,
        max_tokens=512,
        unparsed_credit=0.5,
    )


def load_one_side(sources: Sources) -> Suite:
    """950 yes/no questions, each link in both directions."""
    items = []
    for cause, effect in read_links(sources):
        for truth, ends in (("Yes", (cause, effect)), ("No", (effect, cause))):
            prompt = ONE_SIDE.format(cause=_as_pain(ends[0]), effect=_as_pain(ends[1]))
            question = Question(prompt, truth)
            swapped = replace(question, prompt=prompt.replace("Yes or No", "No or Yes"))
            unit = f"{cause} -> {effect}"
            items.append(Item(f"{ends[0]} -> {ends[1]}", question, swapped=swapped, unit=unit))
    return Suite(
        "neuropathic_one_side",
        tuple(items),
        YES_ANYWHERE,
        lambda grading: accuracy(grading, "neuropathic_one_side"),
        temperature=1.0,
        max_tokens=16,
    )


def load_graph100(sources: Sources) -> Suite:
    """50 links and 50 pairs without one, translated by the authors from the Swedish names; option A is the file's."""
    name = f"{FOLDER}/result_prompts.csv"
    rows = sources.table(name, ("pair_id", "prompt", "Answer"))
    sources.unique(name, [row["pair_id"] for row in rows])
    items = []
    for row_ in rows:
        prompt = sent(row_["prompt"])
        options = tuple(text for _, text in OPTION.findall(prompt))
        if len(options) != 3:
            raise UsageError(f"{sources.locate(name)}: {row_['pair_id']} has no options A, B and C")
        truth = "A" if row_["Answer"] == "True" else "C"
        swapped = prompt.replace(f"A. {options[0]}\nB. {options[1]}", f"A. {options[1]}\nB. {options[0]}")
        items.append(
            Item(
                row_["pair_id"],
                Question(prompt, truth, options),
                swapped=Question(swapped, "B" if truth == "A" else "C", (options[1], options[0], options[2])),
            )
        )
    return Suite(
        "neuropathic_graph100",
        tuple(items),
        NEUROPATHIC,
        graph100_results,
        temperature=0.7,
        max_tokens=512,
        system=EXPERT,
        unparsed_credit=0.5,
    )


def graph100_results(grading: Grading) -> list[Result]:
    """Accuracy over the three options; precision, recall and F1 of edges, ours and as released.

    Ours: a wrong direction is a false edge and a missed one, an answer that cannot be read predicts no edge. Upstream:
    a wrong direction only misses the edge, and unread answers are left out. Of several samples of a pair the most
    frequent answer counts.
    """
    split = "neuropathic_graph100"
    rows = accuracy(grading, split)
    ours, theirs = [], []
    for replies in grading.units.values():
        truth = replies[0].question.truth
        has_edge = truth != "C"
        label = grading.vote(replies)
        ours.append([label == truth != "C", label in ("A", "B"), has_edge])
        label = grading.vote(replies, "upstream")
        right = label == truth
        read = label is not None
        theirs.append([right and has_edge, read and (right if has_edge else not right), read and has_edge])
    for suffix, counts in (("", ours), ("_upstream", theirs)):
        table = np.array(counts, dtype=float)
        for name, statistic in EDGE_METRICS.items():
            found = estimates.estimate(table, statistic)
            if not np.isnan(found.value):
                rows.append(row(f"{name}{suffix}", found, split))
    return rows


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return a / b


EDGE_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": lambda sums: _divide(sums[..., 0], sums[..., 1]),
    "recall": lambda sums: _divide(sums[..., 0], sums[..., 2]),
    "f1": lambda sums: _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2]),
}
"""Of sums of (true positives, predicted edges, true edges)."""
