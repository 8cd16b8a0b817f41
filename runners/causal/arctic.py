"""The arctic sea ice graph (Huang et al., Frontiers in Big Data 2021): 12 variables, 66 pairs, 48 directed edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from privlm.errors import UsageError
from privlm.results import Result

from . import estimates, graphs
from .answers import ARCTIC
from .grading import asked, row
from .items import Item, Question
from .sources import KICIMAN, Sources, sent
from .suite import Grading, Suite

FOLDER = f"{KICIMAN}/arctic"
SYSTEM = (
    "You are a helpful assistant on causal reasoning. Your goal is to answer factually and concisely questions about "
    "cause and effect in arctic sea ice and atmosphere sciences. If you are not sure, do not claim any causal "
    "relationship."
)
PROMPT = (
    "Which of the following causal relationship is correct?\tA. {A}\tB. {B}\tC. Both A and B are true.\t"
    "D. None of the above. No direct relationship exists.\t\tLet's think step-by-step to make sure that we have the "
    "right answer. Then provide your final answer within the tags, <Answer>A/B/C/D</Answer>."
)
BOTH, NONE = "Both A and B are true.", "None of the above. No direct relationship exists."
LABELS = {(True, False): "A", (False, True): "B", (True, True): "C", (False, False): "D"}
EDGES = {label: edges for edges, label in LABELS.items()}
"""Label -> (edge from the first variable to the second, edge back); an answer that cannot be read gives no edge."""
UNITS = {"nhd": "fraction", "baseline_nhd": "fraction", "nhd_ratio": "ratio", "shd": "pairs", "edges": "edges"}


@dataclass(frozen=True)
class Truth:
    """Short names, long names as asked, and the graph."""

    names: list[str]
    texts: list[str]
    graph: graphs.Adjacency


def read_truth(sources: Sources) -> Truth:
    """Raises UsageError for a matrix of another size than the list of variables, or with other entries than 0 and 1."""
    named = [line.partition(": ") for line in sources.lines(f"{FOLDER}/variables.txt")]
    name = f"{FOLDER}/ground_truth_adjacency.csv"
    cells = [line.split(",") for line in sources.lines(name)]
    is_square = [len(row_) for row_ in cells] == [len(named)] * len(named)
    if not is_square or not {cell for row_ in cells for cell in row_} <= {"0", "1"}:
        raise UsageError(f"{sources.locate(name)}: not a 0/1 matrix of {len(named)} x {len(named)}")
    graph = np.array([[cell == "1" for cell in row_] for row_ in cells])
    return Truth([short for short, _, _ in named], [text.strip() for _, _, text in named], graph)


def load(sources: Sources) -> Suite:
    truth = read_truth(sources)
    items = []
    for i, j in combinations(range(len(truth.names)), 2):
        edges = bool(truth.graph[i, j]), bool(truth.graph[j, i])
        items.append(
            Item(
                f"pair_{i}_{j}",
                _question(truth.texts[i], truth.texts[j], LABELS[edges]),
                swapped=_question(truth.texts[j], truth.texts[i], LABELS[edges[::-1]]),
            )
        )
    return Suite(
        "arctic",
        tuple(items),
        ARCTIC,
        lambda grading: results(grading, truth),
        temperature=0.7,
        max_tokens=512,
        system=SYSTEM,
    )


def _question(first: str, second: str, truth: str) -> Question:
    directed = [f"Changing {a} can directly change {b}." for a, b in ((first, second), (second, first))]
    return Question(sent(PROMPT.format(A=directed[0], B=directed[1])), truth, (*directed, BOTH, NONE))


def predicted(grading: Grading, parser: str | None, num_nodes: int) -> graphs.Adjacency:
    """The graph of the answers; of several samples the most frequent answer counts."""
    graph = np.zeros((num_nodes, num_nodes), dtype=bool)
    for item_id, replies in grading.units.items():
        i, j = (int(number) for number in item_id.split("_")[1:])
        label = grading.vote(replies, parser)
        graph[i, j], graph[j, i] = EDGES[label] if label else (False, False)
    return graph


def results(grading: Grading, truth: Truth) -> list[Result]:
    """Distances and edge figures by the parser of the run and by the released one, and those of the empty graph."""
    split = "arctic"
    num_nodes = len(truth.names)
    settings: Sequence[tuple[str, str | None]] = (("", None), ("_upstream", "upstream"))
    rows: list[Result] = []
    for suffix, parser in settings:
        graph = predicted(grading, parser, num_nodes)
        rows += graph_rows(truth.graph, graph, suffix, split)
    empty = graphs.metrics(graphs.pair_counts(truth.graph, np.zeros_like(truth.graph)).sum(0), num_nodes)
    rows += [
        Result("empty_graph_nhd", float(empty["nhd"]), n=len(grading.units), split=split),
        Result("empty_graph_nhd_ratio", float(empty["nhd_ratio"]), "ratio", len(grading.units), split=split),
    ]
    return [*rows, *asked(grading, split)]


def graph_rows(truth: graphs.Adjacency, graph: graphs.Adjacency, suffix: str, split: str) -> list[Result]:
    """All figures of one predicted graph, intervals over resampled pairs of nodes; undefined ones are left out."""
    counts = graphs.pair_counts(truth, graph)

    def metric(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: graphs.metrics(sums, len(truth))[name]

    rows = []
    for name in graphs.metrics(counts.sum(0), len(truth)):
        found = estimates.estimate(counts, metric(name))
        if not np.isnan(found.value):
            rows.append(row(f"{name}{suffix}", found, split, UNITS.get(name, "fraction")))
    return [
        *rows,
        Result(f"two_way_pairs{suffix}", graphs.two_way_pairs(graph), "pairs", len(counts), split=split),
        Result(f"nodes_in_cycles{suffix}", graphs.nodes_in_cycles(graph), "nodes", len(graph), split=split),
        Result(f"self_loops{suffix}", graphs.self_loops(graph), "edges", len(graph), split=split),
    ]
