import pytest
from support.runs import cell_of

from privlm import files
from privlm.report.store import find_runs
from privlm.report.table import Table
from privlm.report.table_file import parse_table
from privlm.report.table_plot import MAX_PANELS, Mark, draw, panels_of
from privlm.report.tables import build_table

pytestmark = pytest.mark.torch_free

SOURCE = {"source": "Table 2", "tolerance": 0.5}
SPEC = {
    "kind": "runs", "title": "Accuracy", "seeds": 1, "row_title": "method", "metric": "accuracy", "unit": "percent",
    "decimals": 1, "columns": {"sms": {"title": "SMS"}, "sst2": {"title": "SST-2", "unit": "percent"}},
    "rows": [
        {"name": "theirs", "cells": {"sms": {"published": 95.0, **SOURCE}}},
        {"name": "ours", "run": ["cell=ours"], "columns": ["sms"], "cells": {"sms": {"published": 97.5, **SOURCE}}},
        {"name": "not found", "cells": {"sms": {"published": None}}},
    ],
}  # fmt: skip
OWN = SPEC | {
    "columns": {
        "sms": {},
        "sigma": {"metric": "sigma", "unit": None, "decimals": 2},
        "loss": {"metric": "loss", "unit": None},
    },
    "rows": [{"name": f"row {number}", "run": [f"cell=row {number}"]} for number in range(3)],
}


def table_of(root, spec=SPEC, **settings):
    def resolve(words):
        return cell_of(words[0].removeprefix("cell="))

    return build_table(parse_table("ewtune_main", spec), find_runs(root), resolve, **settings)


def rows_of(**values):
    """Rows of result.json: a value, or a value and its interval."""
    units = {"accuracy": "fraction", "sigma": "clipping norms", "loss": "nats"}
    rows = []
    for name, value in values.items():
        number, low, high = value if isinstance(value, tuple) else (value, None, None)
        rows.append({"metric": name, "value": number, "unit": units[name], "n": 1040, "ci_low": low, "ci_high": high,
                     "split": "test", "provenance": "measured"})  # fmt: skip
    return {"rows": rows}


def test_published_and_ours_stand_in_one_mark_and_a_cell_of_neither_in_none(tmp_path, make_run):
    make_run(tmp_path, cell="ours", scale="paper", result=rows_of(accuracy=(0.978, 0.97, 0.985)))
    sms, *others = panels_of(table_of(tmp_path))
    assert (sms.title, sms.unit, others) == ("SMS", "percent", [])
    theirs, ours = sms.marks
    assert theirs == Mark("theirs", "not run", published=95.0)
    assert (ours.status, ours.published, ours.ours, ours.tolerance) == ("match", 97.5, pytest.approx(97.8), 0.5)
    assert ours.interval == pytest.approx((97.0, 98.5))


def test_a_tolerance_is_drawn_only_where_it_has_decided(tmp_path, make_run):
    make_run(tmp_path, cell="ours", result=rows_of(accuracy=0.978))
    ours = panels_of(table_of(tmp_path))[0].marks[1]
    assert (ours.status, ours.tolerance) == ("small", None)


def test_what_was_replayed_says_so(tmp_path, make_run):
    rows = rows_of(accuracy=0.978)
    rows["rows"][0]["provenance"] = "replayed"
    for cell in ("ours", "row 0"):
        make_run(tmp_path, cell=cell, scale="paper", result=rows)
    assert panels_of(table_of(tmp_path))[0].marks[1].status == "match, replayed"
    only_accuracy = OWN | {"columns": {"sms": {}}}
    assert panels_of(table_of(tmp_path, only_accuracy))[0].marks[0].status == "not published, replayed"


def test_of_our_own_runs_shares_and_columns_with_an_interval_are_drawn(tmp_path, make_run):
    for number in range(2):
        values = {"accuracy": 0.9 + number / 100, "sigma": 1.4, "loss": (0.3, 0.2, 0.4)}
        make_run(tmp_path, cell=f"row {number}", result=rows_of(**values))
    panels = panels_of(table_of(tmp_path, OWN))
    assert [panel.title for panel in panels] == ["sms", "loss"]
    assert [mark.row for mark in panels[0].marks] == ["row 0", "row 1"]
    assert panels[1].marks[0].interval == (0.2, 0.4)


def test_a_value_that_is_not_finite_is_no_figure(tmp_path, make_run):
    make_run(tmp_path, cell="ours", scale="paper", result=rows_of(accuracy="nan"))
    table = table_of(tmp_path)
    assert panels_of(table)[0].marks[1] == Mark("ours", "differs", published=97.5, tolerance=0.5)
    assert draw(table, tmp_path / "picture.png") is None


def test_without_a_figure_of_ours_nothing_is_written(tmp_path, make_run):
    (tmp_path / "runs").mkdir()
    arithmetic = Table("noise", "noise", ["sigma"], [["1.4"]], values=[{"sigma_PLD": 1.4}])
    for table in (table_of(tmp_path / "runs"), table_of(tmp_path / "runs", OWN), arithmetic):
        assert draw(table, tmp_path / "picture.png") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize("spec", [SPEC, OWN])
def test_the_picture_is_a_png_and_the_same_table_gives_the_same(tmp_path, make_run, spec):
    for cell in ("ours", "row 0"):
        make_run(tmp_path, cell=cell, result=rows_of(accuracy=(0.9, 0.89, 0.91), sigma=1.4, loss=0.3))
    path = tmp_path / "picture.png"
    assert draw(table_of(tmp_path, spec), path) == path
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000
    draw(table_of(tmp_path, spec), path)
    assert path.read_bytes() == content


def test_a_full_disk_leaves_the_earlier_picture(tmp_path, make_run, monkeypatch):
    make_run(tmp_path, cell="ours", result=rows_of(accuracy=0.9))
    path = tmp_path / "picture.png"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        draw(table_of(tmp_path), path)
    assert path.read_bytes() == b"before"


def drawn(monkeypatch, table, path):
    """Draws a table and returns the texts of its panels: title -> labels of its rows; and those of the legend."""
    from privlm.report import table_plot

    figures = []
    monkeypatch.setattr(table_plot, "save", lambda figure, file, suffix: (figures.append(figure), file.touch()))
    assert draw(table, path) == path
    (figure,) = figures
    axes = [one for one in figure.axes if one.get_visible()]
    panels = {one.get_title(loc="left"): [label.get_text() for label in one.get_yticklabels()] for one in axes}
    legend = figure.legends[0]
    return panels, [text.get_text() for text in (legend.get_title(), *legend.get_texts())]


def test_rows_keep_the_order_of_the_table_and_the_legend_tells_each_status(tmp_path, make_run, monkeypatch):
    make_run(tmp_path, cell="ours", scale="paper", result=rows_of(accuracy=(0.978, 0.97, 0.985)))
    panels, legend = drawn(monkeypatch, table_of(tmp_path), tmp_path / "picture.png")
    assert panels == {"SMS": ["theirs", "ours"]}
    assert legend == ["bars: 95 % interval", "published", "ours: match", "tolerance of the verdict"]


def test_of_many_columns_those_with_both_figures_are_drawn_and_it_says_how_many(tmp_path, make_run, monkeypatch):
    names = [f"column {number}" for number in range(MAX_PANELS + 2)]
    metrics = {name: {"title": name, "split": name} for name in names}
    cells = {name: {"published": 90.0, **SOURCE} for name in names}
    measured = {
        "name": "a",
        "run": ["cell=a"],
        "columns": names[2:],
        "cells": {name: cells[name] for name in names[2:]},
    }
    missing = {"name": "b", "cells": cells}
    rows = [rows_of(accuracy=0.9)["rows"][0] | {"split": name} for name in names]
    make_run(tmp_path, cell="a", result={"rows": rows})
    table = table_of(tmp_path, SPEC | {"columns": metrics, "rows": [measured, missing]})
    panels, legend = drawn(monkeypatch, table, tmp_path / "picture.png")
    assert list(panels) == names[2:]
    assert legend[0] == "6 of 8 columns are drawn"


def test_names_are_text_and_no_formulas(tmp_path, make_run, monkeypatch):
    make_run(tmp_path, cell="ours", result=rows_of(accuracy=0.9))
    rows = [SPEC["rows"][1] | {"name": r"$\frac$ <b> of a name that takes more than one line"}]
    path = draw(table_of(tmp_path, SPEC | {"title": "$x^", "rows": rows}), tmp_path / "picture.png")
    assert path.stat().st_size > 5000
