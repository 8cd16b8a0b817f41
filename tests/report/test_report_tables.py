import csv
import io
import json
import math

import pytest
from support.runs import cell_of

from privlm.errors import UsageError
from privlm.report.render import FORMATS, to_json
from privlm.report.store import find_runs
from privlm.report.table_file import parse_table
from privlm.report.tables import build_table, mean_and_sd, spread_text

pytestmark = pytest.mark.torch_free

RUN = ["task=ewtune", "privacy.epsilon=3"]
SPEC = {
    "kind": "runs", "title": "Accuracy & co", "paper": "1234.5678", "number": "Table 2", "seeds": 2,
    "row_title": "method", "metric": "accuracy", "unit": "percent", "decimals": 1, "columns": {"sms": {"title": "SMS"}},
    "rows": [{"name": "ours|theirs_100%", "cells": {"sms": {
        "published": 97.5, "source": "Table 2", "tolerance": 0.5, "run": RUN}}}],
}  # fmt: skip
OWN = SPEC | {"paper": None, "rows": [{"name": "eps 3", "run": RUN}]}


def resolve(overrides: list[str]) -> str:
    scales = [word.partition("=")[2] for word in overrides if word.startswith("scale=")]
    return cell_of("-".join(["cell", *scales]))


def table_of(root, spec=SPEC, **settings):
    return build_table(parse_table("ewtune_main", spec), find_runs(root), resolve, **settings)


def only_cell(root, spec=SPEC, **settings):
    return table_of(root, spec, **settings).values[0]


def changed(**cell):
    row = SPEC["rows"][0]
    return SPEC | {"rows": [row | {"cells": {"sms": row["cells"]["sms"] | cell}}]}


def test_two_paper_runs_inside_the_tolerance_match(tmp_path, make_run):
    make_run(tmp_path, seed=0, scale="paper", values={"accuracy": 0.978})
    make_run(tmp_path, seed=1, scale="paper", values={"accuracy": 0.974})
    table = table_of(tmp_path)
    cell = table.values[0]
    assert cell["status"] == "match"
    assert cell["ours"] == pytest.approx(97.6)  # percent from fractions
    assert cell["sd"] == pytest.approx(math.sqrt(2) * 0.2)
    assert cell["delta"] == pytest.approx(0.1)
    assert table.rows[0] == ["ours|theirs_100%", "SMS", "97.5", "97.6 ± 0.3", "2 of 2", "+0.1", "match", "Table 2"]


def test_the_difference_is_taken_before_rounding(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, scale="paper", values={"accuracy": 0.98049})
    assert only_cell(tmp_path, changed(tolerance=0.54))["status"] == "differs"
    assert only_cell(tmp_path, changed(tolerance=0.55))["status"] == "match"


def test_fewer_seeds_are_partial(tmp_path, make_run):
    make_run(tmp_path, scale="paper")
    table = table_of(tmp_path)
    assert table.rows[0][3:5] == ["97.6 ± —", "1 of 2"]
    assert table.values[0]["status"] == "partial"
    assert table.columns[2] == "published, not reproduced"


def test_small_runs_get_no_verdict(tmp_path, make_run):
    for seed, status in ((0, "small, partial"), (1, "small")):
        make_run(tmp_path, seed=seed)
        cell = only_cell(tmp_path)
        assert (cell["status"], cell["delta"]) == (status, None)


def test_smoke_runs_enter_only_the_smoke_table(tmp_path, make_run):
    make_run(tmp_path, scale="smoke")
    table = table_of(tmp_path)
    assert table.values[0]["status"] == "not run"
    assert any(note.startswith("1 smoke runs are not shown") for note in table.notes)
    make_run(tmp_path, scale="smoke", cell="cell-smoke")
    table = table_of(tmp_path, scale="smoke")
    assert table.title.startswith("SMOKE")
    assert table.values[0]["status"] == "smoke, partial"


def test_a_failed_run_gives_no_figure(tmp_path, make_run):
    make_run(tmp_path, state="failed", status={"reason": "out of memory"})
    table = table_of(tmp_path)
    assert (table.values[0]["status"], table.values[0]["ours"]) == ("failed", None)
    assert any("failed (out of memory; privacy spent so far" in note for note in table.notes)


def test_a_damaged_result_is_named_in_the_footer(tmp_path, make_run):
    (make_run(tmp_path) / "result.json").write_text('{"rows": [')
    table = table_of(tmp_path)
    assert table.values[0]["status"] == "not run"
    assert any("done (result.json cannot be read" in note for note in table.notes)


def test_an_empty_store_and_a_cell_that_is_not_run(tmp_path):
    assert only_cell(tmp_path)["status"] == "not run"
    assert only_cell(tmp_path, changed(run=None))["status"] == "not run"


def test_a_figure_that_was_not_found_has_no_delta(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, scale="paper")
    table = table_of(tmp_path, changed(published=None, note="not found"))
    assert table.rows[0][2] == "not found"
    assert (table.values[0]["status"], table.values[0]["delta"]) == ("not published", None)


def test_runs_of_another_configuration_are_named_not_averaged(tmp_path, make_run):
    make_run(tmp_path, seed=0, scale="paper", values={"accuracy": 0.97})
    make_run(tmp_path, seed=1, scale="paper", values={"accuracy": 0.5}, cell="before an edit of a default")
    table = table_of(tmp_path)
    assert table.values[0]["ours"] == pytest.approx(97.0)
    assert any("another configuration" in note for note in table.notes)


def test_a_seed_that_ran_twice_counts_once(tmp_path, make_run):
    make_run(tmp_path / "a", scale="paper", values={"accuracy": 0.5}, finished=1.0)
    make_run(tmp_path / "b", scale="paper", values={"accuracy": 0.9}, finished=2.0)
    table = table_of(tmp_path)
    assert table.values[0]["ours"] == pytest.approx(90.0)
    assert any("seed 0 was run 2 times" in note for note in table.notes)


def test_different_data_in_one_cell_is_reported_as_mixed(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, scale="paper", status={"inputs": {"data": f"{seed}" * 64}})
    assert any(note.startswith("MIXED: the seeds did not read the same data") for note in table_of(tmp_path).notes)


def test_a_nan_spoils_its_own_cell_only(tmp_path, make_run):
    source = {"source": "p. 3", "tolerance": 1}
    cells = {"sms": {"published": 1.0, **source}, "f1": {"published": 90.0, **source}}
    columns = {"sms": {}, "f1": {"metric": "f1"}}
    spec = SPEC | {"columns": columns, "rows": [{"name": "r", "run": RUN, "cells": cells}]}
    make_run(tmp_path, seed=0, scale="paper", values={"accuracy": "nan", "f1": 0.9})
    make_run(tmp_path, seed=1, scale="paper", values={"accuracy": 0.9, "f1": 0.9})
    table = table_of(tmp_path, spec)
    assert [cell["status"] for cell in table.values] == ["differs", "match"]
    assert json.loads(to_json(table.values))[0]["ours"] == "nan"


def test_own_tables_have_no_published_column(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed)
    table = table_of(tmp_path, OWN)
    assert table.columns == ["method", "SMS", "seeds", "status"]
    assert table.rows == [["eps 3", "97.6", "2 of 2", "small"]]


def test_the_footer_tells_how_where_and_under_which_privacy(tmp_path, make_run):
    make_run(tmp_path, finished=1.7e9)
    notes = "\n".join(table_of(tmp_path).notes)
    run = ["privlm sweep task=ewtune privacy.epsilon=3 seed=0,1", "aaaaaaaaaaaa", "sms_spam", "Linux-x86_64, no GPU"]
    privacy = ["add_remove", "certified by pld", "secure noise"]
    for fact in (*run, *privacy, "2023-11-14", "arXiv 1234.5678"):
        assert fact in notes


def test_a_subset_gets_no_verdict_and_marks_are_printed(tmp_path, make_run):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, scale="paper", result={"marks": ["subset", "public-overlap"]})
    cell = only_cell(tmp_path)
    assert (cell["status"], cell["delta"]) == ("no verdict, subset, public-overlap", None)
    assert table_of(tmp_path, OWN).rows[0][-1] == "no verdict, subset, public-overlap"


AUDIT = {"sms": {}, "audit": {"metric": "audit_epsilon", "unit": None, "absent": "not audited"}}


def test_what_no_run_reports_may_be_expected(tmp_path, make_run):
    path = make_run(tmp_path)
    spec = OWN | {"columns": AUDIT}
    assert table_of(tmp_path, spec).rows == [["eps 3", "97.6 ± —", "not audited", "1 of 2", "small, partial"]]
    (path / "audit.json").write_text(json.dumps({"epsilon_lower_bound": 0.4}))
    assert table_of(tmp_path, spec).rows[0][2:4] == ["0.4 ± —", "1 of 2"]
    assert table_of(tmp_path / "empty", spec).rows == [["eps 3", "", "", "0 of 2", "not run"]]


def claimed(**changes):
    rows = [{"name": name, "run": [f"cell={name}"]} for name in ("low", "high")]
    claim = {"claim": "high beats low", "column": "sms", "higher": "high", "than": "low"}
    return OWN | {"rows": rows, "claims": [claim | changes]}


def test_a_claim_is_judged_over_the_seeds_that_both_rows_have(tmp_path, make_run):
    for seed in range(4):
        make_run(tmp_path, seed=seed, cell="high", values={"accuracy": 0.97 + seed / 100})
        if seed:
            make_run(tmp_path, seed=seed, cell="low", values={"accuracy": 0.95 + 1.1 * seed / 100})
    table = build_table(
        parse_table("ewtune_main", claimed()),
        find_runs(tmp_path),
        lambda words: cell_of(words[0].removeprefix("cell=")),
    )
    assert table.notes[0] == (
        "claim: high beats low: holds (difference +1.80 [+1.55, +2.05], 95 % paired t interval over 3 seeds)"
    )
    (claim,) = table.claims
    assert (claim["verdict"], claim["num_seeds"], claim["higher"]) == ("holds", 3, "high")


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_same_store_gives_the_same_bytes(tmp_path, make_run, output_format):
    for seed in (1, 0):
        make_run(tmp_path, seed=seed, scale="paper")
    first, second = (FORMATS[output_format](table_of(tmp_path)) for _ in range(2))
    assert first == second


def test_names_are_escaped(tmp_path):
    table = table_of(tmp_path)
    assert r"ours\|theirs_100%" in FORMATS["md"](table)
    assert r"ours\textbar{}theirs\_100\% & SMS" in FORMATS["latex"](table)
    assert "Accuracy &amp; co" in FORMATS["html"](table)


def test_csv_holds_full_precision_beside_the_rounded_figure(tmp_path, make_run):
    make_run(tmp_path, scale="paper", values={"accuracy": 0.97612345})
    header, row = csv.reader(io.StringIO(FORMATS["csv"](table_of(tmp_path))))
    cell = dict(zip(header, row, strict=True))
    assert cell["ours"] == "97.6 ± —"
    assert float(cell["ours (exact)"]) == pytest.approx(97.612345)


def test_rows_may_read_different_splits_of_one_run(tmp_path, make_run):
    rows = [
        {"metric": "accuracy", "value": value, "unit": "fraction", "n": 9, "split": split, "provenance": "measured"}
        for split, value in (("plain", 0.5), ("gold", 0.75))
    ]
    make_run(tmp_path, result={"rows": rows})
    spec = OWN | {"rows": [{"name": name, "split": name, "run": RUN} for name in ("plain", "gold")]}
    assert [cell["sms"] for cell in table_of(tmp_path, spec).values] == [50.0, 75.0]
    named = spec | {"columns": {"sms": {"title": "SMS", "split": "plain"}}}
    assert [cell["sms"] for cell in table_of(tmp_path, named).values] == [50.0, 50.0]
    anywhere = spec | {"columns": {"sms": {"title": "SMS", "split": None}}}
    with pytest.raises(UsageError, match="give the column a `split:`"):  # null: what the run reports once, for no split
        table_of(tmp_path, anywhere)


def test_an_ambiguous_split_is_refused(tmp_path, make_run):
    path = make_run(tmp_path, scale="paper")
    result = json.loads((path / "result.json").read_text())
    result["rows"].append(result["rows"][0] | {"split": "mismatched"})
    (path / "result.json").write_text(json.dumps(result))
    with pytest.raises(UsageError, match="splits test, mismatched"):
        table_of(tmp_path)
    one_split = SPEC | {"columns": {"sms": {"split": "test"}}}
    assert only_cell(tmp_path, one_split)["status"] == "partial"


def test_a_metric_that_no_run_reports_is_refused_with_the_nearest(tmp_path, make_run):
    make_run(tmp_path)
    with pytest.raises(UsageError, match="'acuracy'; did you mean accuracy"):
        table_of(tmp_path, SPEC | {"metric": "acuracy"})


def test_a_wrong_unit_is_refused(tmp_path, make_run):
    make_run(tmp_path, unit="nats")
    with pytest.raises(UsageError, match="in percent, but the runs report 'accuracy' in nats"):
        table_of(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (changed(source=None), "needs its source"),
        (changed(tolerance=None), "needs a tolerance"),
        (SPEC | {"unit": None}, "needs the unit"),
        (changed(publishd=1), "unknown 'publishd'; did you mean published"),
        (SPEC | {"rows": SPEC["rows"] * 2}, "stands twice"),
        (SPEC | {"columns": {"qnli": {}}}, "unknown 'sms'"),
        (SPEC | {"seeds": None}, "missing seeds"),
        (SPEC | {"metric": None}, "no metric"),
        (claimed(higher="hihg"), "no row 'hihg'; did you mean high"),
        (claimed(column="f1"), "no cell in column 'f1'"),
        (claimed(better="x"), "unknown 'better'"),
        (claimed(than=None), "missing than"),
    ],
)
def test_a_faulty_table_file_does_not_load(spec, message):
    with pytest.raises(UsageError, match=message):
        parse_table("ewtune_main", spec)


def test_spread():
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([math.inf, math.inf]) == (math.inf, 0.0)
    assert mean_and_sd([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert math.isnan(mean_and_sd([math.nan, 3.0])[1])
    assert [spread_text(2.0, sd, 2) for sd in (None, 0.0, 0.5)] == ["2.00 ± —", "2.00", "2.00 ± 0.50"]
    assert spread_text(2.0, 0.5, 2, (0.758, 3.242)) == "2.00 ± 0.50 [0.76, 3.24]"
    assert spread_text(2.0, 0.0001, 2, (1.9998, 2.0002)) == "2.00 ± 0.00 [1.9998, 2.0002]"  # no interval of width 0


def test_three_seeds_give_the_interval_of_their_mean_and_two_none(tmp_path, make_run):
    for seed, accuracy in enumerate((0.97, 0.98, 0.99)):
        make_run(tmp_path, seed=seed, scale="paper", values={"accuracy": accuracy})
        texts = table_of(tmp_path).rows[0][3]
        assert texts == ("97.0 ± —", "97.5 ± 0.7", "98.0 ± 1.0 [95.5, 100.5]")[seed]
    assert table_of(tmp_path).values[0]["interval"] == pytest.approx((95.516, 100.484), abs=1e-3)


def test_a_figure_of_one_seed_shows_the_interval_of_its_run(tmp_path, make_run):
    row = {"metric": "accuracy", "value": 0.976, "unit": "fraction", "n": 9, "ci_low": 0.95, "ci_high": 0.99,
           "split": "test", "provenance": "measured"}  # fmt: skip
    make_run(tmp_path, cell="cell", overrides=tuple(RUN), result={"rows": [row]})
    table = table_of(tmp_path)
    assert table.rows[0][3] == "97.6 [95.0, 99.0]"
    assert table.values[0]["interval"] == pytest.approx((95, 99))
