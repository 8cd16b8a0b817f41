"""Directed graphs as 0/1 matrices, and how far a predicted one is from the truth.

Entry [i, j] is 1 for an edge i -> j. Nothing is assumed of a predicted graph: cycles, edges in both directions and
self-loops count as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from privlm.errors import UsageError
from privlm.metrics.classification import f1_of_counts
from privlm.metrics.estimate import Estimate
from privlm.metrics.shares import share_of_counts

Adjacency = np.ndarray
"""bool [m, m]."""


def from_edges(names: Sequence[str], edges: Iterable[tuple[str, str]]) -> Adjacency:
    """The graph of named edges. Raises UsageError that lists the names which are no nodes."""
    edges = list(edges)
    unknown = sorted({node for edge in edges for node in edge} - set(names))
    if unknown:
        raise UsageError(f"no such nodes: {', '.join(unknown)} (the graph has {', '.join(names)})")
    graph = np.zeros((len(names), len(names)), dtype=bool)
    for cause, effect in edges:
        graph[names.index(cause), names.index(effect)] = True
    return graph


def pair_counts(truth: Adjacency, predicted: Adjacency) -> np.ndarray:
    """float [num_pairs, 5]: for each unordered pair of nodes its true positives, predicted edges, true edges, wrong
    cells of the matrix, and whether the pair is wrong at all. Everything below is a function of their sums.

    num_pairs: m (m - 1) / 2, and one more for each node with a self-loop.
    """
    i, j = np.triu_indices(len(truth))
    real = (i != j) | (truth | predicted)[i, j]
    i, j = i[real], j[real]
    true, guess = (np.stack([graph[i, j], graph[j, i] & (i != j)], axis=1) for graph in (truth, predicted))
    wrong = (true != guess).sum(1)
    return np.stack([(true & guess).sum(1), guess.sum(1), true.sum(1), wrong, wrong > 0], axis=1).astype(float)


def metrics(sums: np.ndarray, num_nodes: int) -> dict[str, np.ndarray]:
    """Figures from the sums of `pair_counts` (shape [..., 5]); NaN where one is undefined (the precision of no edges).

    nhd: normalised Hamming distance, wrong cells over all m^2 cells. baseline_nhd: that of as many edges, all wrong.
    nhd_ratio: nhd over its baseline; lower is better. shd: structural Hamming distance, the unordered pairs that are
    wrong (an edge missing, added or turned counts once). precision, recall, f1: of directed edges; the released code
    compares the reverse direction with the wrong cell, these are the correct figures.
    """
    hits, predicted, true, wrong, wrong_pairs = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "nhd": wrong / num_nodes**2,
            "baseline_nhd": (predicted + true) / num_nodes**2,
            "nhd_ratio": wrong / (predicted + true),
            "precision": hits / predicted,
            "recall": hits / true,
            "f1": 2 * hits / (predicted + true),
            "shd": wrong_pairs,
            "edges": predicted,
        }


def estimated(counts: np.ndarray, num_nodes: int) -> dict[str, float | Estimate]:
    """The figures of `metrics` with their intervals over pairs of nodes; undefined ones are left out.

    counts: of `pair_counts`, [num_pairs, 5]. Predicted edges and the baseline describe a graph: they estimate nothing.
    """
    hits, predicted, true, wrong, wrong_pairs = counts.T
    num_pairs = len(counts)
    f1 = f1_of_counts(hits, predicted, true)
    known: dict[str, Estimate] = {
        "nhd": share_of_counts(wrong, np.full(num_pairs, 2)).mapped(lambda part: part * 2 * num_pairs / num_nodes**2),
        "nhd_ratio": f1.mapped(lambda value: 1 - value),
        "precision": share_of_counts(hits, predicted),
        "recall": share_of_counts(hits, true),
        "f1": f1,
        "shd": share_of_counts(wrong_pairs, np.ones(num_pairs)).mapped(lambda part: part * num_pairs),
    }
    plain = {name: float(value) for name, value in metrics(counts.sum(0), num_nodes).items()}
    return {name: known.get(name, value) for name, value in plain.items() if not np.isnan(value)}


def nodes_in_cycles(graph: Adjacency) -> int:
    """Nodes that reach themselves along directed edges; 0 for a directed acyclic graph."""
    reach = graph.copy()
    for node in range(len(graph)):  # Warshall's closure
        reach |= np.outer(reach[:, node], reach[node])
    return int(np.diagonal(reach).sum())


def two_way_pairs(graph: Adjacency) -> int:
    """Unordered pairs with an edge in both directions."""
    return int((graph & graph.T).sum() - np.diagonal(graph).sum()) // 2


def self_loops(graph: Adjacency) -> int:
    return int(np.diagonal(graph).sum())
