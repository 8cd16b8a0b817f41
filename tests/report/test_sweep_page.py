import html
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from privlm.report import epsilon_plot, store, sweep_page, sweep_plots
from privlm.report.resolved import read_config
from privlm.report.store import read_run
from privlm.report.sweep_page import SweepRow, duration

pytestmark = pytest.mark.torch_free


@pytest.fixture
def row(make_run, tmp_path):
    """Makes a row of the sweep and its run directory."""

    def make(words="seed=0", state="done", *, accuracy=0.9, reason="", epsilon=None, report=False, **changes):
        rows = [{"metric": "accuracy", "value": accuracy, "unit": "fraction", "n": 1040, "ci_low": accuracy - 0.02,
                 "ci_high": accuracy + 0.02, "split": "test", "provenance": "measured"}]  # fmt: skip
        if epsilon is not None:
            rows.append({"metric": "epsilon", "value": epsilon, "unit": "epsilon", "provenance": "measured"})
        changes = {"scale": "paper", "config": {"scale": "paper"}} | changes
        path = make_run(tmp_path / "runs", cell=words, state=state, result={"rows": rows}, **changes)
        privacy = {"mechanism": "none"} if epsilon is None else {"mechanism": "dp_sgd", "target_epsilon": epsilon}
        (path / "privacy.json").write_text(json.dumps(privacy))
        if report:
            (path / "report.html").touch()
        figure = f"accuracy {accuracy:.4g}" if state == "done" else ""
        return SweepRow(words, state, reason, 60.0, figure, read_run(path), path)

    return make


def page_of(tmp_path, rows, command="privlm sweep seed=0,1"):
    return sweep_page.sweep_page("toy", command, rows, folder=tmp_path / "runs" / "sweeps" / "toy")


def body(page):
    """Rows of the grid, each as the text of its cells."""
    rows = re.findall(r"<tr class=\"is-\d+\">(.*?)</tr>", page, re.DOTALL)
    cells = [re.split(r"<td[^>]*>", row)[1:] for row in rows]
    return [[html.unescape(" ".join(re.sub(r"<[^>]*>", " ", cell).split())) for cell in row] for row in cells]


def test_the_grid_has_a_column_for_each_swept_key(tmp_path, row):
    rows = [
        row("adapter=lora privacy.epsilon=3 seed=0"),
        row("adapter=head seed=0", "failed", reason="out of memory"),
    ]
    page = page_of(tmp_path, rows)
    heads = re.findall(r"<th(?: [^>]*)?>([^<\n]*)", page)
    assert heads == ["run", "adapter", "privacy.epsilon", "seed", "state", "time", "figure", "reason"]
    first, second = body(page)
    assert first[1:] == ["lora", "3", "0", "done", "1 min 00 s", "accuracy 0.9 [0.88, 0.92]", ""]
    assert second[1:] == ["head", "", "0", "failed", "1 min 00 s", "", "out of memory"]


def test_the_counts_by_state_choose_what_the_grid_shows(tmp_path, row):
    states = ("done", "done", "failed", "queued")
    rows = [row(f"lr={number}", state) for number, state in enumerate(states)]
    page = page_of(tmp_path, rows)
    assert "2 of 4 done" in page
    chips = re.findall(r'<input type="radio" name="state" id="(state-\d)">(\d+ \w+)<', page)
    assert chips == [("state-0", "2 done"), ("state-1", "1 failed"), ("state-2", "1 queued")]
    assert re.findall(r'<tr class="(is-\d)">', page) == ["is-0", "is-0", "is-1", "is-2"]
    assert "main:has(#state-1:checked) tbody tr:not(.is-1)" in page
    assert re.findall(r'<td class="(tone-\w+)">(\w+)<', page) == [
        ("tone-good", "done"), ("tone-good", "done"), ("tone-bad", "failed"), ("tone-quiet", "queued")
    ]  # fmt: skip


def test_links_lead_to_the_report_or_else_to_the_directory_from_where_the_page_lies(tmp_path, row):
    rows = [row("seed=0", report=True), row("seed=1")]
    odd = tmp_path / "runs" / "ewtune" / "a b%#?ü-1"
    odd.mkdir()
    rows += [SweepRow("seed=2", "queued", "", None, "", None, odd)]
    rows += [SweepRow("seed=3", "new", "its directory is gone", None, "", None, tmp_path / "gone-2")]
    links = re.findall(r'<a href="([^"]*)"', page_of(tmp_path, rows))
    first, second = (f"../../ewtune/{one.directory.name}" for one in rows[:2])
    assert links == [f"{first}/report.html", f"{second}/", "../../ewtune/a%20b%25%23%3F%C3%BC-1/"]


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(tmp_path, row):
    page = page_of(tmp_path, [row(f"lr={rate} seed=0", accuracy=rate) for rate in (0.1, 0.2)])
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"http|<script|\ssrc=|url\((?!#)|@import|<link|\son\w+=", page)


def test_text_of_others_is_escaped_and_secrets_are_masked(tmp_path, row):
    rows = [
        row("data.path=<i>&'\" seed=0", "failed", reason="<b>bad</b> api_key=4711 \udc80"),
        row("data.path=x seed=0", "<u>odd"),
    ]
    page = page_of(tmp_path, rows, command="privlm sweep llm.api_key=4711 x=<i>")
    assert not re.search(r"<[biu]>", page)
    assert "4711" not in page
    assert body(page)[0][-1] == "<b>bad</b> api_key=*** ?"
    page.encode("utf-8")


def test_without_a_reason_there_is_no_column_for_it(tmp_path, row):
    assert ">reason" not in page_of(tmp_path, [row()])


def test_only_finished_runs_are_drawn(tmp_path, row):
    rows = [row(f"lr={rate} seed=0", accuracy=rate) for rate in (0.1, 0.2)]
    stopped = row("lr=0.3 seed=0", "interrupted").directory
    (stopped / "result.json").write_bytes((rows[0].directory / "result.json").read_bytes())  # its questions ended early
    rows.append(SweepRow("lr=0.3 seed=0", "interrupted", "", 60.0, "", read_run(stopped), stopped))
    page = page_of(tmp_path, rows)
    assert "accuracy (test) by lr" in page
    assert ">0.3</text>" not in page
    assert "<svg" not in page_of(tmp_path, rows[1:])


def test_accuracy_is_drawn_against_epsilon_where_two_budgets_were_run(tmp_path, row):
    one, two, none = (
        row(f"epsilon={value} seed=0", epsilon=value, config={"scale": "paper", "data": {"name": "sst2"}})
        for value in (1.0, 8.0, None)
    )
    for rows in ([one, two], [one, none]):
        page = page_of(tmp_path, rows)
        assert "accuracy by certified ε" in page
        assert "sst2 (test)" in page
    for rows in ([one], [none]):
        assert "certified ε" not in page_of(tmp_path, rows)


def test_no_price_is_drawn_of_a_ledger_that_does_not_add_up(tmp_path, row):
    rows = [row(f"epsilon={value} seed=0", epsilon=value) for value in (1.0, 3.0, 8.0)]
    (rows[0].directory / "privacy_ledger.jsonl").write_text('{"schema": 2}\n')
    page = page_of(tmp_path, rows)
    assert re.search(r'<p class="banner">.*privacy_ledger.jsonl: line 1', page)
    drawing = page[page.index("accuracy by certified ε") :]
    assert re.findall(r">(\d)</text>", drawing[: drawing.index("</figure>")]) == ["3", "8"]


def test_an_audited_run_or_a_broken_ledger_alone_leaves_nothing_to_draw(tmp_path, row):
    audited = {"privacy": {"audit": {"canaries": "label"}}, "scale": "paper"}
    rows = [row(f"epsilon={value} seed=0", epsilon=value, config=audited) for value in (1.0, 8.0)]
    page = page_of(tmp_path, rows)
    assert "certified ε" not in page
    assert "Audited run: canaries" in page


def test_large_ledgers_are_not_read_for_a_picture(tmp_path, row, monkeypatch):
    rows = [row(f"epsilon={value} seed=0", epsilon=value) for value in (1.0, 8.0)]
    (rows[0].directory / "privacy_ledger.jsonl").write_text("x" * 1000)
    monkeypatch.setattr(sweep_page, "MAX_LEDGER_BYTES", 999)
    monkeypatch.setattr(epsilon_plot, "panels_of", lambda runs: pytest.fail("read"))
    page = page_of(tmp_path, rows)
    assert f"privlm compare {rows[0].directory.parent} --plot FILE draws it" in page


def test_the_scale_of_finished_runs_is_a_banner(tmp_path, row):
    rows = [row("seed=0", scale="smoke", config={"scale": "smoke"}), row("seed=1", scale="smoke", config={})]
    rows.append(row("seed=2", "failed", scale="small", config={"scale": "small"}))
    banners = re.findall(r'<p class="banner">(.*)</p>', page_of(tmp_path, rows))
    assert len(banners) == 1
    assert banners[0].startswith("Smoke run")


def test_a_sweep_that_has_not_begun_has_a_page(tmp_path):
    rows = [SweepRow(f"seed={seed}", "queued", "", None, "", None, Path("gone")) for seed in range(2)]
    page = page_of(tmp_path, rows)
    assert "0 of 2 done" in page
    assert page_of(tmp_path, []).startswith("<!doctype html>")


def test_of_two_hundred_runs_each_configuration_is_read_once_and_not_by_omegaconf(tmp_path, row, monkeypatch):
    rows = [row(f"lr={number % 5} x={number // 5} seed=0", epsilon=float(number % 3 + 1)) for number in range(200)]
    for module in (sweep_plots, epsilon_plot):
        monkeypatch.setattr(module, "svg", lambda plot: "<svg></svg>")
    page_of(tmp_path, rows[:3])  # imports
    rows = [SweepRow(**vars(one) | {"run": read_run(one.directory)}) for one in rows]
    read: list[Path] = []
    monkeypatch.setattr(store, "read_config", lambda path: read.append(path) or read_config(path))
    monkeypatch.setattr(OmegaConf, "load", None)  # fifteen times as slow
    assert len(body(page_of(tmp_path, rows))) == 200
    assert sorted(read) == sorted(one.directory / "config.yaml" for one in rows)
    assert not any(one.run.problems for one in rows)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_are_told_in_two_units(seconds, text):
    assert duration(seconds) == text
