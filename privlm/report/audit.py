"""The audit of a run as facts, and as a section of its page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from privlm.report.card import rounded_up
from privlm.report.look import page_drawing, page_svg
from privlm.report.plots import GRID, INK, SERIES
from privlm.report.table import Table
from privlm.results import TOO_FEW, interval_text


@dataclass(frozen=True)
class AuditSection:
    """What the page shows: the verdict, facts as (name, value), remarks, and the drawing of the scores."""

    verdict: str
    facts: list[list[str]]
    remarks: list[str]
    drawing: str


def audit_section(audit: dict[str, Any]) -> AuditSection:
    """The section of a page from the content of audit.json."""
    from markupsafe import Markup

    remarks = [*audit["warnings"], audit["note"]]
    return AuditSection(audit["verdict"], facts(audit), remarks, Markup(scores_svg(audit)))


def facts(audit: dict[str, Any]) -> list[list[str]]:
    """The content of audit.json as (name, value)."""
    epsilon, kind = float(audit["claimed_epsilon"]), "certified" if audit["certified"] else "estimated"
    shown = rounded_up(epsilon) if audit["certified"] else f"{epsilon:.3f}"
    claim = f"{shown} at δ {audit['delta']:g}, {kind} by {audit['accountant']}"
    rows = [
        ["claimed ε", "no claim" if math.isinf(epsilon) else claim],
        ["lower bound on ε", f"{audit['epsilon_lower_bound']:.3f} at {audit['confidence']:.0%} confidence"],
        ["trade-off curve of the mechanism", "rejected" if audit["curve_rejected"] else "not rejected"],
        ["threat model", audit["threat_model"]],
        ["right guesses", f"{audit['num_correct']} of {audit['num_guesses']}, about {audit['num_canaries']} canaries"],
        ["guessed in, guessed out", f"{audit['guesses_in']}, {audit['guesses_out']}, fixed beforehand"],
        ["adjacency, unit", f"{audit['adjacency']}, {audit['unit']}"],
        ["audited run", audit["audited_run"] + (", the twin of this run with canaries" if audit["is_twin"] else "")],
    ]
    if segments := audit.get("segments"):
        rows.insert(1, ["releases of the run", "; ".join(map(_releases, segments))])
    if audit["epsilon_estimate"] is not None:
        rows.insert(3, ["ε if the mechanism were Gaussian", f"{audit['epsilon_estimate']:.3f} (estimate)"])
    if audit["exposure"] is not None:
        bits = audit["exposure"]
        rows.insert(3, ["exposure", f"{bits['mean_bits']:.2f} bits on average, at most {bits['max_bits']:.2f}"])
    return rows


def _releases(segment: dict[str, Any]) -> str:
    """Of the run's ledger; what was planned is not audited."""
    rate, noise = segment["sampling_rate"], float(segment["noise_multiplier"])
    return f"{segment['steps']:,} at sampling rate {rate:.4g} with noise multiplier {noise:.4g}"


def lira_table(lira: dict[str, Any]) -> Table:
    """The content of lira.json as a table."""
    rows = []
    for name, rate in lira["rates"].items():
        if rate["value"] is None:
            rows.append([name, "not resolvable", ""])
        else:
            interval = interval_text(rate["ci_low"], rate["ci_high"], ".4f") or TOO_FEW
            rows.append([name, f"{rate['value']:.4f}", interval])
    title = f"{lira['method']}: {lira['num_records']} canaries, {lira['num_shadow_runs']} shadow runs"
    return Table("lira", title, ["metric", "value", "95 % interval"], rows, [], [])


def scores_svg(audit: dict[str, Any]) -> str:
    """Scores of the canaries that were in and of those that were out, with the ends that were guessed: an `<svg>`."""
    from matplotlib.figure import Figure

    histogram = audit["histogram"]
    with page_drawing("audit"):
        figure = Figure(figsize=(9.6, 3.0), layout="constrained")
        axes = figure.subplots()
        edges = histogram["edges"]
        for colour, name in zip(SERIES, ("in", "out"), strict=False):
            axes.stairs(histogram[name], edges, color=colour, alpha=0.18, fill=True)
            axes.stairs(histogram[name], edges, color=colour, linewidth=1.8, label=f"canaries {name}")
        highest_out, lowest_in = histogram["guessed"]
        for start, end, name in ((edges[0], highest_out, "guessed out"), (lowest_in, edges[-1], "guessed in")):
            axes.axvspan(start, end, color=INK, alpha=0.08, linewidth=0, zorder=0)
            place = axes.get_xaxis_transform()  # data across, the height of the axes upwards
            axes.text((start + end) / 2, 1.0, name, color=INK, transform=place, ha="center", va="top", fontsize=8)
        axes.set_axisbelow(True)
        axes.set_ylim(top=1.15 * max(*histogram["in"], *histogram["out"]))
        axes.set_xlabel("score (higher: more likely in the training data)", color=INK)
        axes.set_ylabel("canaries", color=INK)
        axes.tick_params(colors=INK, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, borderpad=0, handlelength=1.4)
        return page_svg(figure)
