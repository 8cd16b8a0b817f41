import json
import re

import pytest

from privlm.errors import UsageError
from privlm.report.epsilon_plot import Point, draw, panels_of, svg
from privlm.report.store import find_runs

pytestmark = pytest.mark.torch_free


@pytest.fixture
def glue_run(make_run, tmp_path):
    """Makes a run of one data set, adapter and budget (None: no privacy), with an interval of ± 0.02."""

    def make(accuracy, *, data="sst2", adapter="lora", epsilon=3.0, seed=0, marks=(), state="done"):
        rows = [{"metric": "accuracy", "value": accuracy, "unit": "fraction", "n": 872, "ci_low": accuracy - 0.02,
                 "ci_high": accuracy + 0.02, "split": "dev", "provenance": "measured"},
                {"metric": "majority_class", "value": 0.51, "unit": "fraction", "split": "dev",
                 "provenance": "measured"}]  # fmt: skip
        if epsilon is not None:
            spent = {"metric": "epsilon", "value": epsilon - 1e-3, "unit": "epsilon", "provenance": "measured"}
            rows.append(spent)
        names = {"data": {"name": data}, "adapter": {"name": adapter}, "model": {"name": "minilm"}}
        path = make_run(
            tmp_path, cell=f"{data} {adapter} {epsilon}", seed=seed, state=state, config=names,
            result={"rows": rows, "marks": list(marks)},
        )  # fmt: skip
        privacy = {"mechanism": "none"} if epsilon is None else {"mechanism": "dp_sgd", "target_epsilon": epsilon}
        (path / "privacy.json").write_text(json.dumps(privacy))
        return path

    return make


def panels(tmp_path):
    return panels_of(find_runs(tmp_path).runs)


def test_a_panel_for_each_data_set_a_line_for_each_adapter(tmp_path, glue_run):
    glue_run(0.8, epsilon=8.0)
    glue_run(0.7, epsilon=1.0)
    glue_run(0.85, epsilon=None)
    glue_run(0.75, adapter="rgp")
    glue_run(0.6, data="qnli", marks=["subset", "public-overlap"])
    qnli, sst2 = panels(tmp_path)
    assert (qnli.title, qnli.marks, qnli.majority) == ("qnli (dev)", ["subset", "public-overlap"], 0.51)
    assert [point.epsilon for point in sst2.lines["lora"]] == [pytest.approx(0.999), pytest.approx(7.999), None]
    assert sst2.lines["rgp"] == [Point(2.999, 0.75, pytest.approx(0.73), pytest.approx(0.77), 1)]


def test_seeds_become_one_point_with_the_interval_of_their_mean(tmp_path, glue_run):
    for seed, accuracy in enumerate((0.7, 0.8, 0.9)):
        glue_run(accuracy, seed=seed)
    ((point,),) = panels(tmp_path)[0].lines.values()
    assert (point.value, point.low, point.high, point.num_runs) == (
        pytest.approx(0.8),
        pytest.approx(0.8 - 0.24841, abs=1e-5),  # 4.3027 sd / sqrt(3)
        pytest.approx(0.8 + 0.24841, abs=1e-5),
        3,
    )


def test_two_seeds_have_no_bar(tmp_path, glue_run):
    for seed, accuracy in enumerate((0.7, 0.8)):
        glue_run(accuracy, seed=seed)
    ((point,),) = panels(tmp_path)[0].lines.values()
    assert (point.low, point.high) == (point.value, point.value)


def test_audited_and_unfinished_runs_are_not_drawn(tmp_path, glue_run):
    glue_run(0.8, state="failed")
    with pytest.raises(UsageError, match="nothing to draw"):
        panels(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_drawing_is_written_and_names_what_it_shows(tmp_path, glue_run, suffix):
    glue_run(0.8)
    glue_run(0.85, epsilon=None)
    path = tmp_path / f"plot{suffix}"
    draw(panels(tmp_path), path)
    content = path.read_bytes()
    assert len(content) > 5000
    draw(panels(tmp_path), path)
    if suffix != ".pdf":  # which holds its date
        assert path.read_bytes() == content


def test_another_suffix_is_refused(tmp_path, glue_run):
    glue_run(0.8)
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg, \.pdf"):
        draw(panels(tmp_path), tmp_path / "plot.txt")


def longest_line(drawing):
    """Points of the longest path in the first colour."""
    return max(path.count("L") for path in re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-1\)', drawing)) + 1


def test_on_a_page_it_has_the_colours_of_the_page(tmp_path, glue_run):
    for epsilon in (1.0, 3.0, 8.0, None):
        glue_run(0.8, epsilon=epsilon)
    drawing = svg(panels(tmp_path))
    assert drawing.startswith("<svg viewBox=")
    assert "sst2 (dev)" in drawing
    assert "majority class" in drawing
    assert "#0000" not in drawing
    assert "http" not in drawing
    assert longest_line(drawing) == 3


def test_no_line_leads_from_one_setting_to_another_at_one_budget(tmp_path, glue_run, make_run):
    for epsilon in (1.0, 3.0, 8.0):
        glue_run(0.8, epsilon=epsilon)
    other = glue_run(0.7, epsilon=3.0, seed=1)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("cell: sst2", "cell: other"))
    assert len(panels(tmp_path)[0].lines["lora"]) == 4
    assert longest_line(svg(panels(tmp_path))) == 2  # bars alone
