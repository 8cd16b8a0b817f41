import re

import pytest

from privlm.report.look import ON_PAGE
from privlm.report.sweep_plots import MAX_NAMES, MAX_PLOTS, Measured, plots_of, svg, values_of
from privlm.results import Result

pytestmark = pytest.mark.torch_free


def measured(words, value, *, metric="accuracy", unit="fraction", interval=(None, None)):
    return Measured(values_of(words), Result(metric, value, unit, ci_low=interval[0], ci_high=interval[1], split="dev"))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("privacy.epsilon=3 seed=0", {"privacy.epsilon": "3", "seed": "0"}),
        ("task.falls={seed1: always} +x=[1, 2]", {"task.falls": "{seed1: always}", "x": "[1, 2]"}),
        ("data.path='/a b/c d' a=\"x y\"", {"data.path": "'/a b/c d'", "a": '"x y"'}),
        ("~tracker  a=b=c", {"~tracker": "", "a": "b=c"}),
        ("a=x) b=1", {"a": "x)", "b": "1"}),
        ("a=[1 b=2", {"a": "[1 b=2"}),
        ("", {}),
    ],
)
def test_words_are_split_into_keys_and_values(words, values):
    assert values_of(words) == values


def test_seeds_are_repeated_points_with_their_mean():
    runs = [measured(f"lr={rate} seed={seed}", 0.1 * seed + rate) for rate in (0.1, 0.2) for seed in range(3)]
    (plot,) = plots_of(runs)
    assert (plot.title, plot.names, plot.others) == ("accuracy (dev) by lr", None, [])
    first, second = plot.series[""]
    assert (first.x, second.x, first.values) == (0.1, 0.2, pytest.approx([0.1, 0.2, 0.3]))
    assert (first.mean.value, first.mean.n) == (pytest.approx(0.2), 3)
    assert first.mean.ci_low == pytest.approx(0.2 - 0.24841, abs=1e-5)  # 4.3027 sd / sqrt(3)
    assert plot.remarks == ["small dots: runs", "bars: 95 % t interval over 3 and more seeds"]


def test_a_single_run_has_its_own_interval():
    runs = [measured(f"lr={rate}", 0.5, interval=(0.4, 0.6)) for rate in (0.1, 0.2)]
    (plot,) = plots_of(runs)
    (mean, _) = (spot.mean for spot in plot.series[""])
    assert (mean.value, mean.ci_low, mean.ci_high) == (0.5, 0.4, 0.6)
    assert plot.remarks == ["bars: 95 % interval of a single run"]


def test_each_setting_of_the_other_keys_is_a_series_of_its_own():
    runs = [measured(f"lr={rate} adapter={name} seed=0", rate) for rate in (0.2, 0.1) for name in ("head", "lora")]
    by_rate, by_adapter = plots_of(runs)
    assert (list(by_rate.series), by_rate.others) == (["head", "lora"], ["adapter"])
    assert [spot.x for spot in by_rate.series["head"]] == [0.1, 0.2]  # by size, in whatever order they were given
    assert (by_adapter.names, list(by_adapter.series)) == (["head", "lora"], ["0.2", "0.1"])


def lines(drawing):
    """Paths of the first series that lead through more than two places, which bars do not."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-1\)', drawing)
    return [path.count("L") + 1 for path in paths if path.count("L") > 1]


def test_numbers_are_joined_by_a_line_and_names_are_not():
    numbers = svg(*plots_of([measured(f"lr={rate}", rate) for rate in (0.1, 0.2, 0.4)]))
    names = svg(*plots_of([measured(f"adapter={name}", 0.1) for name in ("a", "b", "c")]))
    assert lines(numbers) == [3]
    assert lines(names) == []


def test_one_name_among_numbers_makes_names_of_all():
    (plot,) = plots_of([measured(f"epsilon={value}", 0.5) for value in ("3", "null", "8")])
    assert plot.names == ["3", "null", "8"]


def test_a_run_without_the_key_has_a_place_of_its_own():
    (plot,) = plots_of([measured("epsilon=3", 0.5), measured("", 0.6)])
    assert plot.names == ["3", "—"]


def test_of_too_many_settings_only_the_runs_are_drawn():
    runs = [
        measured(f"a={a} b={b} c={c} seed={seed}", 0.1 * a)
        for a in range(3) for b in "xyz" for c in range(3) for seed in range(2)
    ]  # fmt: skip
    plot = plots_of(runs)[0]
    assert (plot.has_means, plot.others, list(plot.series)) == (False, ["b"], ["x", "y", "z"])
    assert plot.remarks == ["dots: runs, which differ in c too"]
    drawing = svg(plot)
    assert not lines(drawing)
    assert drawing.count("<use") >= 54


def test_seeds_alone_are_one_plot():
    (plot,) = plots_of([measured(f"seed={seed}", seed) for seed in range(4)])
    assert (plot.title, plot.names, len(plot.series[""][0].values)) == ("accuracy (dev), all runs", [""], 4)
    assert svg(plot).startswith("<svg viewBox=")


def test_one_run_or_none_is_no_plot():
    assert plots_of([]) == []
    assert plots_of([measured("seed=0", 0.5)]) == []


def test_runs_told_by_another_figure_and_what_is_not_finite_are_left_out_and_counted():
    runs = [measured(f"lr={rate}", rate) for rate in (0.1, 0.2)]
    runs += [measured("lr=0.3", 3.0, metric="loss"), measured("lr=0.4", float("nan")), measured("lr=nan", 0.5)]
    (plot,) = plots_of(runs)
    assert plot.names == ["0.1", "0.2", "nan"]  # a value that is no place on an axis is a name
    assert plot.remarks[:2] == ["1 run is told by another figure", "1 figure is not finite"]


def test_a_wide_range_has_a_logarithmic_axis():
    narrow, wide = (
        svg(*plots_of([measured(f"lr={rate}", 0.5) for rate in rates])) for rates in ((1, 2, 8), (1, 10, 100))
    )
    places = [
        [float(x) for x in re.findall(r'<text style="[^"]*text-anchor: middle[^"]*" x="([\d.]+)"', drawing)][:3]
        for drawing in (narrow, wide)
    ]
    steps = [(second - first) / (third - second) for first, second, third in places]
    assert steps == [pytest.approx(1 / 6, abs=0.01), pytest.approx(1, abs=0.01)]


def test_names_are_text_and_colours_those_of_the_page():
    drawing = svg(*plots_of([measured(f"data.path={name}", 0.5) for name in (r"$\frac$", "<b>&", "/long" * 9)]))
    assert r"$\frac$" in drawing
    assert "&lt;b&gt;&amp;" in drawing
    assert "<b>" not in drawing
    assert "#0000" not in drawing
    assert not re.search(r"http|url\((?!#)", drawing)


def test_plots_keep_to_what_can_be_read():
    names = [measured(f"data={number}x", 0.5) for number in range(MAX_NAMES + 1)]
    assert plots_of(names) == []
    keys = [measured(" ".join(f"k{key}={run}" for key in range(MAX_PLOTS + 3)), 0.5) for run in range(3)]
    assert len(plots_of(keys)) == MAX_PLOTS
    assert len(plots_of(keys)[0].series) <= len(ON_PAGE.series)
