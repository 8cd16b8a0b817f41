"""report.html: the page of one run in one file that asks nothing of the network and quotes nothing of the data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privlm import files
from privlm.masking import mask_text
from privlm.report.audit import audit_section
from privlm.report.card import READING_COLUMNS, Card, figure, number, privacy_card, rounded_up
from privlm.report.compare import flatten
from privlm.report.html_page import banners_of, data_uri, fill
from privlm.report.plots import plots_of, svg
from privlm.report.store import RunRecord, read_run
from privlm.results import Result

REPORT = "report.html"
NUM_TILES = 2


@dataclass(frozen=True)
class Tile:
    """A figure of the first screen, with what it needs to be read rightly."""

    title: str
    value: str
    remarks: list[str]


def write_report(run_dir: Path) -> Path:
    """Writes report.html into a run directory, in whatever state the run is, and returns its path.

    An earlier report stays whole if this one cannot be written (OSError).
    """
    path = run_dir / REPORT
    files.write_text(path, render_report(read_run(run_dir)))
    return path


def render_report(run: RunRecord) -> str:
    """The page as text."""
    from markupsafe import Markup
    from omegaconf import OmegaConf

    card = privacy_card(run.privacy, run.audit)
    env = dict(run.env or {})
    command = mask_text(env.pop("command", ""))
    artefacts = _artefacts(run)
    return fill(
        REPORT,
        run=run,
        title=" · ".join(_names(run)) or run.name,
        banners=banners_of(run),
        state=": ".join(filter(None, [run.state, run.status.get("reason")])),
        finished=_date(run),
        tiles=[*_result_tiles(run), _privacy_tile(run.privacy, card)],
        plots=[(plot.title, Markup(svg(plot))) for plot in plots_of(run)],
        pictures=_pictures(run),
        card=card,
        audit=None if run.audit is None else audit_section(run.audit),
        figure=figure,
        reading_columns=READING_COLUMNS,
        interval=_interval,
        notes=(run.result or {}).get("notes", []),
        stages=run.status.get("stages", {}),
        command=command,
        config=OmegaConf.to_yaml(OmegaConf.create(run.config)),
        environment=flatten(env),
        artefacts=artefacts,
        total_size=_size(sum(size for _, size, _ in artefacts)),
        size=_size,
    )


def _pictures(run: RunRecord) -> list[tuple[str, str]]:
    """Title and data URI of the PNG files that the runner has drawn, pictures/*.png."""
    return [(path.stem.replace("_", " "), data_uri(path)) for path in sorted(run.path.glob("pictures/*.png"))]


def _names(run: RunRecord) -> list[str]:
    groups = ("task", "model", "llm", "data", "adapter")
    return [run.name_of(group) for group in groups if "name" in (run.config.get(group) or {})]


def _date(run: RunRecord) -> str:
    finished = (run.result or {}).get("finished")
    return "" if finished is None else datetime.fromtimestamp(finished, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _result_tiles(run: RunRecord) -> list[Tile]:
    """The first results that are fractions: runners report what matters most first."""
    baselines = {row.split: row.value for row in run.results if row.metric == "majority_class"}
    rows = [row for row in run.results if row.unit == "fraction" and row.metric != "majority_class"][:NUM_TILES]
    tiles = []
    for row in rows:
        remarks = [f"95% interval {_interval(row)}"] if row.ci_low is not None else []
        remarks += [f"n = {row.n:,}" + (f" ({row.split})" if row.split else "")] if row.n else []
        if row.metric == "accuracy" and row.split in baselines:
            remarks.append(f"majority class {baselines[row.split]:.1%}")
        tiles.append(Tile(row.metric.replace("_", " "), f"{row.value:.1%}", remarks))
    return tiles


def _privacy_tile(privacy: dict[str, Any] | None, card: Card) -> Tile:
    if privacy is not None and not privacy.get("final", True):
        epsilon = (privacy.get("spent") or {}).get("epsilon")
        return Tile("epsilon spent so far", "—" if epsilon is None else rounded_up(float(epsilon)), [card.headline])
    if not card.readings:
        return Tile("privacy", "none", [card.headline])
    assert privacy is not None
    first, target = card.readings[0], privacy["target_epsilon"]
    if first.guaranteed is None or not privacy["guarantee"]:
        return Tile("epsilon", "no guarantee", [card.headline])
    remarks = [
        f"guaranteed by {first.accountant.upper()}",
        f"δ = {float(privacy['delta']):g} per {privacy['unit']}",
    ]
    remarks += [f"budget {number(target)}"] if target is not None else []
    return Tile("epsilon", rounded_up(first.guaranteed), remarks)


def _interval(row: Result) -> str:
    if row.ci_low is None or row.ci_high is None:
        return row.no_interval or ""
    if row.unit == "fraction":
        return f"{100 * row.ci_low:.1f} – {row.ci_high:.1%}"
    return f"{row.ci_low:.4g} – {row.ci_high:.4g}"


def _artefacts(run: RunRecord) -> list[tuple[str, int, str]]:
    """Path, bytes and sha256 of every file but the report; digests that the run has recorded are not computed again."""
    known = {
        path: digest for stage in run.status.get("stages", {}).values() for path, digest in stage["outputs"].items()
    }
    return [
        (path, size, known.get(path) or files.sha256_file(run.path / path))
        for path, size in run.files()
        if path != REPORT
    ]


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
