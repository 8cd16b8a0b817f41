"""Runs on own data or own weights: beside the figures of the name, never among them."""

import json

import pytest
from support.runs import cell_of

from privlm.report.compare import compare
from privlm.report.epsilon_plot import panels_of
from privlm.report.page import render_report
from privlm.report.store import find_runs, read_run
from privlm.report.table_file import parse_table
from privlm.report.tables import build_table

pytestmark = pytest.mark.torch_free

RUN = ["task=ewtune", "privacy.epsilon=3"]
SPEC = {
    "kind": "runs", "title": "t", "paper": "1234.5678", "number": "Table 2", "seeds": 2, "row_title": "method",
    "metric": "accuracy", "unit": "percent", "decimals": 1, "columns": {"sms": {"title": "SMS"}},
    "rows": [{"name": "eps 3", "cells": {"sms": {
        "published": 97.5, "source": "Table 2", "tolerance": 0.5, "run": RUN}}}],
}  # fmt: skip
OWN_TABLE = SPEC | {"paper": None, "rows": [{"name": "eps 3", "run": RUN}]}


def content(name, digest="1" * 64, known=False, group="data"):
    return {"content": {group: {"name": name, "digest": digest, "known": known, "splits": {}}}}


@pytest.fixture
def store(tmp_path, make_run):
    """Two runs of the name, two of own data, one of others with the same file name, one of own weights."""
    runs = [
        ({"seed": 0}, content("sms_spam", known=True), 0.98), ({"seed": 1}, content("sms_spam", known=True), 0.97),
        ({"seed": 0}, content("messages"), 0.6), ({"seed": 1}, content("messages"), 0.5),
        ({"seed": 0}, content("messages", "2" * 64), 0.4),
        ({"seed": 0}, content("tuned", "3" * 64, group="model"), 0.7),
    ]  # fmt: skip
    for number, (settings, status, accuracy) in enumerate(runs):
        rows = {"accuracy": accuracy, "epsilon": 2.999}
        make_run(tmp_path / str(number), scale="paper", status=status, values=rows, **settings)
    return find_runs(tmp_path)


def table_of(store, spec=SPEC):
    return build_table(parse_table("ewtune_main", spec), store, lambda words: cell_of("cell"))


def test_they_stand_in_lines_of_their_own_below_the_cell(store):
    table = table_of(store)
    first, *own = table.values
    assert (first["ours"], first["seeds"], first["status"]) == (pytest.approx(97.5), 2, "match")
    assert [(line["ours"], line["seeds"], line["published"], line["delta"], line["status"]) for line in own] == [
        (pytest.approx(55.0), 2, None, None, "not published, own data"),
        (pytest.approx(40.0), 1, None, None, "partial, own data"),
        (pytest.approx(70.0), 1, None, None, "partial, own weights"),
    ]
    assert own[2]["row"] == "eps 3 [tuned]"
    assert own[0]["row"].startswith("eps 3 [messages ")
    assert len({line["row"] for line in own}) == 3


def test_a_table_of_our_own_shows_them_too(store):
    rows = table_of(store, OWN_TABLE).rows
    assert rows[0] == ["eps 3", "97.5 ± 0.7", "2 of 2", "not published"]
    assert [row[1:] for row in rows[1:]] == [
        ["55.0 ± 7.1", "2 of 2", "not published, own data"],
        ["40.0 ± —", "1 of 2", "partial, own data"],
        ["70.0 ± —", "1 of 2", "partial, own weights"],
    ]


def test_a_comparison_by_cell_never_averages_them_with_the_name(store):
    results = compare(store.runs, by_cell=True)[0]
    accuracy = next(row for row in results.rows if row[0].startswith("accuracy"))
    assert accuracy[2:] == ["0.9750 ± 0.0071 (2 seeds)", "0.5500 ± 0.0707 (2 seeds)", "0.4", "0.7"]
    assert ["data", "", "sms_spam", "messages", "messages", "sms_spam"] in results.rows
    assert results.rows[-1][2:] == ["", "own data", "own data", "own weights"]
    assert len(set(results.columns)) == len(results.columns)


def test_a_plot_gives_each_data_set_a_panel_and_each_model_a_line(store):
    drawn = panels_of(store.runs)
    titles = [panel.title for panel in drawn]
    assert titles[0] == "sms_spam (test)"
    assert len(set(titles)) == 3
    assert all(title.startswith("messages (test) ") for title in titles[1:])
    assert [panel.marks for panel in drawn] == [["own weights"], ["own data"], ["own data"]]
    assert sorted(point.value for line in drawn[0].lines.values() for point in line) == pytest.approx([0.7, 0.975])
    assert len(drawn[0].lines) == 2


def test_the_page_calls_them_by_their_name(store):
    own = next(run for run in store.runs if run.own_name == "messages")
    page = render_report(own)
    assert "messages" in page.partition("</title>")[0]
    assert "sms_spam" not in page.partition("</title>")[0]
    assert "Own data: not the rows" in page


@pytest.mark.parametrize(("path", "fills"), [(None, True), ("/elsewhere/messages.txt", False)])
def test_a_run_of_before_fills_its_cell_unless_it_read_a_path(tmp_path, make_run, path, fills):
    run = make_run(tmp_path, config={"data": {"name": "sms_spam", "path": path}}, status={"inputs": {"data": "a" * 64}})
    assert "content" not in json.loads((run / "status.json").read_text())
    assert (read_run(run).cell_hash == cell_of("cell")) == fills
    assert read_run(run).named_cell_hash == cell_of("cell")
    assert read_run(run).own_name == ("" if fills else "messages")
    assert table_of(find_runs(tmp_path), OWN_TABLE).rows[0][2] == ("1 of 2" if fills else "0 of 2")


def test_where_config_yaml_is_lost_the_cell_is_as_it_was_noted(tmp_path, make_run):
    run = make_run(tmp_path, status={**content("messages"), "cell_hash": "d" * 64})
    (run / "config.yaml").unlink()
    assert read_run(run).cell_hash == "d" * 64
    assert table_of(find_runs(tmp_path), OWN_TABLE).rows[0][2] == "0 of 2"


# --- equal runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, make_run):
    """Seeds 0 and 1, and seed 0 in two more places: a copy, and run again with another result, earlier."""
    for place, seed, accuracy, finished in (
        ("a", 0, 0.9, 3.0),
        ("a", 1, 0.8, 3.0),
        ("b", 0, 0.9, 3.0),
        ("c", 0, 0.1, 2.0),
    ):
        make_run(tmp_path / place, seed=seed, values={"accuracy": accuracy, "epsilon": 2.999}, finished=finished)
    return find_runs(tmp_path)


def test_a_run_that_was_copied_or_run_again_is_one_seed_in_a_table(copied):
    assert table_of(copied, OWN_TABLE).rows == [["eps 3", "85.0 ± 7.1", "2 of 2", "small"]]


def test_a_run_that_was_copied_or_run_again_is_one_seed_in_a_comparison(copied):
    results = compare(copied.runs, by_cell=True)[0]
    assert results.rows[0][2:] == ["0.8500 ± 0.0707 (2 seeds)"]
    assert results.notes[-2:] == [
        "copies of the same run count once: 1 left out",
        "of runs of one seed the newest finished one counts: 1 left out",
    ]


def test_a_run_that_was_copied_or_run_again_is_one_run_in_a_plot(copied):
    ((point,),) = panels_of(copied.runs)[0].lines.values()
    assert (point.value, point.num_runs) == (pytest.approx(0.85), 2)


def test_a_run_and_its_repetition_stand_side_by_side_by_their_paths(copied):
    results = compare(copied.runs)[0]
    assert len(results.columns) == len(set(results.columns)) == 5
    assert sorted(results.rows[0][2:]) == ["0.1", "0.8", "0.9"]


def test_runs_of_other_settings_at_one_budget_are_points_of_their_own(tmp_path, make_run):
    for cell, accuracy in (("pld", 0.9), ("rdp", 0.8)):
        make_run(tmp_path, cell=cell, values={"accuracy": accuracy, "epsilon": 2.999})
    ((*points,),) = panels_of(find_runs(tmp_path).runs)[0].lines.values()
    assert sorted(point.value for point in points) == [0.8, 0.9]
