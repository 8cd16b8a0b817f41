"""A language model's directions as background knowledge of a causal discovery algorithm.

The benchmark has no numbers for its graphs. So a subgraph of the neuropathic graph is taken, data are SIMULATED from it
(linear, Gaussian noise), and the PC algorithm of causal-learn runs on them twice: alone, and forbidden to turn a link
against the direction that the model gave. This shows what the knowledge adds to PC, not what real data would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privlm.results import Result

from . import graphs
from .arctic import graph_rows
from .suite import Grading

SPLIT = "neuropathic simulated"
FAN_OUT = 3  # PC's time grows exponentially with the number of neighbours


@dataclass(frozen=True)
class Discovered:
    """graphs: what PC found alone (pc) and with the model's knowledge (pc_llm)."""

    results: list[Result]
    note: str
    names: list[str]
    truth: graphs.Adjacency
    graphs: dict[str, graphs.Adjacency]


def subgraph(links: Sequence[tuple[str, str]], num_nodes: int) -> tuple[list[str], graphs.Adjacency]:
    """A connected part of the graph: from the node with most links outwards, at most FAN_OUT new nodes from each."""
    neighbours: dict[str, list[str]] = {}
    for cause, effect in links:
        neighbours.setdefault(cause, []).append(effect)
        neighbours.setdefault(effect, []).append(cause)
    names = [max(neighbours, key=lambda node: len(neighbours[node]))]
    for node in names:  # grows while it is walked
        new = [other for other in dict.fromkeys(neighbours[node]) if other not in names]
        names += new[: min(FAN_OUT, num_nodes - len(names))]
    inside = [link for link in links if set(link) <= set(names)]
    return names, graphs.from_edges(names, inside)


def simulate(graph: graphs.Adjacency, num_samples: int, seed: int) -> np.ndarray:
    """Data [num_samples, m] of a linear model of the acyclic `graph`: weights 0.5 to 1.5 in size, unit noise."""
    rng = np.random.default_rng(seed)
    m = len(graph)
    weights = graph * rng.uniform(0.5, 1.5, (m, m)) * rng.choice((-1.0, 1.0), (m, m))
    noise = rng.standard_normal((num_samples, m))
    return noise @ np.linalg.inv(np.eye(m) - weights)


def pc_graph(data: np.ndarray, alpha: float, forbidden: graphs.Adjacency | None = None) -> graphs.Adjacency:
    """The graph that PC finds; an edge without direction stands in both.

    forbidden: [i, j] is True where the edge i -> j may not be.
    """
    from causallearn.graph.GraphNode import GraphNode
    from causallearn.search.ConstraintBased.PC import pc
    from causallearn.utils.PCUtils.BackgroundKnowledge import BackgroundKnowledge

    nodes = [GraphNode(f"X{number + 1}") for number in range(data.shape[1])]
    knowledge: Any = None
    if forbidden is not None:
        knowledge = BackgroundKnowledge()
        for i, j in zip(*np.nonzero(forbidden), strict=True):
            knowledge.add_forbidden_by_node(nodes[i], nodes[j])
    found = pc(
        data,
        alpha,
        background_knowledge=knowledge,
        node_names=[node.get_name() for node in nodes],
        show_progress=False,
        verbose=False,
    )
    ends = found.G.graph  # [i, j] is the mark at j of the edge between i and j: -1 tail, 1 arrow
    return (ends.T == 1) & (ends == -1) | (ends == -1) & (ends.T == -1)


def answered_directions(grading: Grading, names: Sequence[str]) -> list[tuple[str, str]]:
    """(cause, effect) by the model, one for each link inside the subgraph whose answer could be read; of several
    samples the most frequent answer counts.
    """
    directions = []
    for replies in grading.units.values():
        cause, _, effect = replies[0].item.id.partition(" -> ")
        label = grading.vote(replies)
        if label is not None and {cause, effect} <= set(names):
            directions.append((cause, effect) if label == replies[0].question.truth else (effect, cause))
    return directions


def discover(
    links: Sequence[tuple[str, str]], grading: Grading, *, num_nodes: int, num_samples: int, alpha: float, seed: int
) -> Discovered:
    """Runs PC without and with the model's directions."""
    names, truth = subgraph(links, num_nodes)
    directions = answered_directions(grading, names)
    data = simulate(truth, num_samples, seed)
    against = graphs.from_edges(names, [(effect, cause) for cause, effect in directions])
    found = {"pc": pc_graph(data, alpha), "pc_llm": pc_graph(data, alpha, against)}
    note = (
        f"{SPLIT}: {num_samples} samples SIMULATED from {len(names)} nodes and {int(truth.sum())} links of the true "
        f"graph; {len(directions)} directions of the model as background knowledge of PC"
    )
    rows = [row for name, graph in found.items() for row in graph_rows(truth, graph, f"_{name}", SPLIT)]
    return Discovered(rows, note, names, truth, found)
