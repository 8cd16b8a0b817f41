import json
import re

import pytest

from privlm.masking import mask_secrets, mask_text
from privlm.report import page
from privlm.report.page import render_report, write_report
from privlm.report.plots import plots_of, svg
from privlm.report.store import read_run

pytestmark = pytest.mark.torch_free

CANARY = "canary-4711"


def page_of(path):
    return write_report(path).read_text(encoding="utf-8")


def test_the_first_screen_holds_result_and_guarantee(tmp_path, make_run):
    html = page_of(make_run(tmp_path))
    first_screen = html[html.index("<main>") : html.index("<details>")]
    for fact in ("97.6%", "90.4%", "2.998", "guaranteed by PLD", "Small scale", "seed 0"):
        assert fact in first_screen


def test_the_privacy_card_is_complete(tmp_path, make_run):
    html = page_of(make_run(tmp_path))
    for fact in ("guarantee: (2.998, 1e-05)-differential privacy per example", "edgeworth, order 2", "1/N = 0.000242",
                 "add_remove", "poisson", "0.06197", "4,131", "160", "1.388", "clipping norm C", "flat", "secure",
                 "not audited", "seeded_noise", "delta &gt;= 1/N"):  # fmt: skip
        assert fact in html


def test_an_estimate_never_stands_in_the_column_of_guarantees(tmp_path, make_run):
    html = page_of(make_run(tmp_path))
    for accountant, guaranteed, estimated in (("rdp", "3.330", ""), ("gdp", "", "2.900")):
        cells = re.search(rf"<td>{accountant}\s*((?:<td class=\"number\">[\d.]*\s*){{3}})", html)
        assert re.findall(r">([\d.]*)", cells[1])[:2] == [guaranteed, estimated]


def test_the_page_asks_nothing_of_the_network(tmp_path, make_run):
    html = page_of(make_run(tmp_path))
    assert "<svg" in html
    assert "http" not in html
    assert "<script" not in html
    assert not re.search(r"url\((?!#)|@import|<link|\ssrc=", html)
    assert all(target.startswith("#") for target in re.findall(r"href=\"([^\"]*)", html))


def test_pictures_of_the_run_are_in_the_page_itself(tmp_path, make_run):
    path = make_run(tmp_path)
    (path / "pictures").mkdir()
    (path / "pictures" / "arctic_graph.png").write_bytes(b"\x89PNG picture")
    html = page_of(path)
    assert '<img src="data:image/png;base64,iVBORyBwaWN0dXJl" alt="arctic graph">' in html
    assert "http" not in html


def test_the_same_run_gives_the_same_page(tmp_path, make_run):
    path = make_run(tmp_path)
    assert page_of(path) == page_of(path)


def test_marks_are_banners(tmp_path, make_run):
    html = page_of(make_run(tmp_path, result={"marks": ["subset", "public-overlap"]}))
    assert html.count('class="banner"') == 3  # and the scale
    assert "fewer examples than the data set has" in html


def test_a_run_of_the_papers_scale_has_no_banner(tmp_path, make_run):
    assert 'class="banner"' not in page_of(make_run(tmp_path, scale="paper", config={"scale": "paper"}))


@pytest.mark.parametrize("scale", ["small", "smoke"])
def test_a_toy_run_has_a_banner(tmp_path, make_run, scale):
    assert 'class="banner"' in page_of(make_run(tmp_path, scale=scale, config={"scale": scale}))


def test_a_run_that_failed_has_a_page(tmp_path, make_run):
    path = make_run(tmp_path, state="failed", status={"reason": "out of <memory>"})
    (path / "privacy.json").unlink()
    (path / "metrics.jsonl").unlink()
    html = page_of(path)
    assert "failed: out of &lt;memory&gt;" in html
    assert "privacy.json has not been written" in html


def test_a_run_without_privacy_says_so(tmp_path, make_run):
    path = make_run(tmp_path)
    (path / "privacy.json").write_text('{"mechanism": "none"}')
    assert "the training data is not protected" in page_of(path)


def test_a_run_that_trains_nothing_opens_its_results(tmp_path, make_run):
    path = make_run(tmp_path, config={"llm": {"name": "smollm2"}})
    (path / "privacy.json").write_text('{"mechanism": "none", "trains": false}')
    metric = {"stage": "ask", "step": 216, "split": "test", "name": "accuracy", "value": 0.5, "time": 0.0}
    (path / "metrics.jsonl").write_text(json.dumps(metric) + "\n")
    html = page_of(path)
    assert "nothing was trained" in html
    assert "smollm2" in html
    assert "<svg" not in html  # one point is no curve
    assert "<details open>" in html


def test_keys_and_raw_data_stay_out(tmp_path, make_run):
    path = make_run(tmp_path, config={"llm": {"api_key": CANARY, "max_tokens": 77}})
    env = json.loads((path / "env.json").read_text())
    (path / "env.json").write_text(json.dumps(env | {"command": f"privlm run llm.api_key={CANARY} seed=0"}))
    (path / "run.log").write_text(CANARY)
    (path / "predictions.txt").write_text(CANARY)
    html = page_of(path)
    assert CANARY not in html
    assert "max_tokens: 77" in html
    assert "llm.api_key=*** seed=0" in html


def test_artefacts_have_size_and_digest(tmp_path, make_run):
    path = make_run(
        tmp_path, status={"stages": {"train": {"state": "done", "seconds": 1.0, "outputs": {"w": "d" * 64}}}}
    )
    (path / "w").write_bytes(b"x" * 2500)
    (path / "empty").touch()
    html = page_of(path)
    assert "d" * 64 in html  # as the run recorded it
    assert "2.5 kB" in html
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" in html  # sha256 of nothing


def test_a_full_disk_leaves_the_earlier_page(tmp_path, make_run, monkeypatch):
    path = make_run(tmp_path)
    before = page_of(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(path)
    assert (path / "report.html").read_text(encoding="utf-8") == before


def test_curves_keep_splits_apart_and_skip_what_is_not_finite(tmp_path, make_run):
    path = make_run(tmp_path)
    rows = [
        {"stage": "train", "step": step, "split": split, "name": name, "value": value, "time": 0.0}
        for split, name, values in (
            ("dev", "accuracy", [0.5, "nan", 0.7]),
            ("test", "accuracy", [0.4, 0.5, 0.6]),
            ("train", "epsilon", [1.0, 2.0, 2.5]),
            ("train", "loss", ["inf", "inf", "inf"]),
        )
        for step, value in enumerate(values, start=1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation, spent = plots_of(read_run(path))
    assert [curve.label for curve in evaluation.curves] == ["dev", "test"]
    assert spent.curves[0].steps == [0, 1, 2, 3]
    assert spent.reference == ("budget 3", 3.0)
    assert "var(--series-2)" in svg(evaluation)
    assert "#0000" not in svg(evaluation)


def test_rendering_needs_no_file_written(tmp_path, make_run):
    path = make_run(tmp_path)
    assert render_report(read_run(path)).startswith("<!doctype html>")
    assert not (path / "report.html").exists()


def test_masking():
    config = {"llm": {"api_key": "x", "hub_token": "y", "max_tokens": 3, "tokenizer": "z"}, "db": [{"password": "p"}]}
    assert mask_secrets(config) == {
        "llm": {"api_key": "***", "hub_token": "***", "max_tokens": 3, "tokenizer": "z"},
        "db": [{"password": "***"}],
    }
    assert mask_secrets({"api_key": None}) == {"api_key": None}
    assert mask_text("run a.secret=1 seed=2") == "run a.secret=*** seed=2"


def test_a_later_private_stage_begins_with_what_the_earlier_ones_have_spent(make_run, tmp_path):
    path = make_run(tmp_path)
    spent = {"pretrain": (0.5, 1.0), "train": (1.5, 2.0)}
    points = [
        {"stage": stage, "step": step, "split": "train", "name": "epsilon", "value": value, "time": 0.0}
        for stage, values in spent.items()
        for step, value in enumerate(values, start=1)
    ]
    points += [{**point, "split": "run", "name": "peak_memory"} for point in points]
    (path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    (plot,) = plots_of(read_run(path))
    assert [(curve.label, curve.values) for curve in plot.curves] == [
        ("pretrain", [0.0, 0.5, 1.0]), ("train", [1.0, 1.5, 2.0])
    ]  # fmt: skip
