"""Pictures of a predicted graph beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import graphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, MISSED = "#0b7a4b", "#b3261e", "#9aa4b2"


def draw(title: str, names: Sequence[str], truth: graphs.Adjacency, predicted: graphs.Adjacency) -> Figure:
    """Edges that are right, wrong, and (dashed) missed, on a circle of nodes."""
    import networkx as nx
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8, 7.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = nx.circular_layout(range(len(names)))
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(range(len(names)))
    nx.draw_networkx_nodes(graph, places, ax=axes, node_color="#eef2f7", edgecolors="#5c6573", node_size=1500)
    nx.draw_networkx_labels(graph, places, dict(enumerate(names)), ax=axes, font_size=9)
    drawn: list[tuple[graphs.Adjacency, str, Any]] = [
        (truth & predicted, RIGHT, "solid"),
        (predicted & ~truth, WRONG, "solid"),
        (truth & ~predicted, MISSED, (0, (4, 3))),
    ]
    for edges, colour, style in drawn:
        nx.draw_networkx_edges(
            graph, places, [(int(i), int(j)) for i, j in np.argwhere(edges)], ax=axes, edge_color=colour, style=style,
            width=1.3, arrowsize=12, node_size=1500, connectionstyle="arc3,rad=0.08",
        )  # fmt: skip
    legend = [
        Line2D([], [], color=colour, linestyle=style, label=f"{label} ({int(edges.sum())})")
        for (edges, colour, style), label in zip(drawn, ("right", "wrong", "missed"), strict=True)
    ]
    axes.legend(handles=legend, loc="upper left", frameon=False, ncols=3, bbox_to_anchor=(0, 1.02))
    axes.set_title(title, loc="left", pad=24)
    axes.set_axis_off()
    return figure
