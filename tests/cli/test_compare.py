import json

import pytest

from privlm.cli.compare import main
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free


def json_values(capsys, *words):
    main([*words, "--json"])
    return json.loads(capsys.readouterr().out)


def test_compares_runs_named_by_hash(tmp_path, make_run, capsys):
    names = [make_run(tmp_path, seed=seed).name for seed in (0, 1)]
    assert main([*(name[-8:] for name in names), "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert "seed" in out


def test_compares_a_folder_as_json(tmp_path, make_run, capsys):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed)
    assert main([str(tmp_path), "--json", "--by-cell"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert list(content) == ["results", "config", "environment"]
    assert [row["metric"] for row in content["results"]] == ["accuracy", "f1"]


def test_many_runs_have_a_line_each(tmp_path, make_run, capsys):
    names = [make_run(tmp_path, seed=seed).name for seed in range(6)]
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(any(name in line and "0.976" in line for line in out.splitlines()) for name in names)
    assert json_values(capsys, str(tmp_path))["results"][0]["metric"] == "accuracy"


def test_the_menus_of_a_recipe_are_no_difference(tmp_path, make_run, capsys):
    for seed, rate in ((0, 0.1), (1, 0.2)):
        make_run(tmp_path, seed=seed, config={"task": {"name": "ewtune", "presets": {"head": {"learning_rate": rate}}}})
    assert [row["key"] for row in json_values(capsys, str(tmp_path))["config"]] == ["seed"]


@pytest.mark.parametrize("words", [[], ["--bogus"], ["nowhere", "nothing"]])
def test_wrong_usage_is_refused(tmp_path, words):
    with pytest.raises(UsageError):
        main([*words, "--runs", str(tmp_path)])


def test_one_run_is_not_a_comparison(tmp_path, make_run):
    path = make_run(tmp_path)
    with pytest.raises(UsageError, match="needs two runs"):
        main([str(path), str(path)])


def test_a_missing_runs_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--runs: no folder"):
        main(["a", "b", "--runs", str(tmp_path / "typo")])


def test_draws_accuracy_against_epsilon(tmp_path, make_run):
    names = {"model": {"name": "minilm"}, "adapter": {"name": "head"}}
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, config=names)
    plot = tmp_path / "plot.svg"
    assert main([str(tmp_path), "--plot", str(plot)]) == 0
    assert "sms_spam (test)" in plot.read_text()
