import pytest

from privlm.report.compare import compare, flatten, short_names
from privlm.report.store import read_run

pytestmark = pytest.mark.torch_free


def runs_of(root, make_run, seeds, **settings):
    return [read_run(make_run(root, seed=seed, values={"accuracy": 0.9 + seed / 100}, **settings)) for seed in seeds]


def test_results_stand_side_by_side(tmp_path, make_run):
    runs = runs_of(tmp_path, make_run, [0, 1])
    results = compare(runs)[0]
    assert results.columns == ["metric", "split", runs[0].name, runs[1].name]
    assert results.rows == [["accuracy (fraction)", "test", "0.9", "0.91"]]


def test_what_all_seeds_agree_on_has_no_spread(tmp_path, make_run):
    runs = [read_run(make_run(tmp_path, seed=seed, values={"parameters": 22566146})) for seed in (0, 1)]
    assert compare(runs, by_cell=True)[0].rows[0][2] == "22,566,146 (2 seeds)"


def test_intervals_are_printed(tmp_path, make_run):
    interval = {"metric": "accuracy", "value": 0.9, "unit": "fraction", "n": 10, "ci_low": 0.85, "ci_high": 0.94,
                "split": "test", "provenance": "measured"}  # fmt: skip
    runs = [read_run(make_run(tmp_path, seed=seed, result={"rows": [interval]})) for seed in (0, 1)]
    assert compare(runs)[0].rows[0][2] == "0.9 [0.85, 0.94]"


def test_only_keys_that_differ_are_listed(tmp_path, make_run):
    runs = [
        read_run(make_run(tmp_path, seed=seed, config={"trainer": {"steps": steps, "batch_size": 8}}))
        for seed, steps in ((0, 160), (1, 60))
    ]
    config, environment = compare(runs)[1:]
    assert config.rows == [["seed", "0", "1"], ["trainer.steps", "160", "60"]]
    assert environment.rows == []
    assert environment.notes == ["no difference"]


def test_secrets_that_differ_stay_secret(tmp_path, make_run):
    runs = [read_run(make_run(tmp_path, seed=seed, config={"llm": {"api_key": f"canary-{seed}"}})) for seed in (0, 1)]
    assert "canary" not in str(compare(runs))


def test_seeds_of_a_cell_become_one_column(tmp_path, make_run):
    runs = runs_of(tmp_path, make_run, [0, 1, 2]) + runs_of(tmp_path, make_run, [7], cell="other")
    results = compare(runs, by_cell=True)[0]
    assert results.columns[2:] == ["minilm-sms_spam-head-dp3 (3 runs)", "minilm-sms_spam-head-dp3 (1 runs)"]
    assert results.rows[0][2:] == ["0.9100 ± 0.0100 [0.8852, 0.9348] (3 seeds)", "0.97"]
    assert results.values[0]["minilm-sms_spam-head-dp3 (3 runs)"] == [0.9, 0.91, 0.92]


def test_a_run_without_result_is_said_to_have_none(tmp_path, make_run):
    runs = runs_of(tmp_path, make_run, [0]) + runs_of(tmp_path, make_run, [1], state="failed")
    results = compare(runs)[0]
    assert results.rows[0][3] == ""
    assert results.notes[-1] == (
        f"{runs[1].name}: failed; privacy spent so far: unknown: there is no ledger"  # of an older version
    )


def test_marks_stand_below_the_figures(tmp_path, make_run):
    runs = runs_of(tmp_path, make_run, [0]) + runs_of(tmp_path, make_run, [1], result={"marks": ["subset"]})
    assert compare(runs)[0].rows[-1] == ["marks", "", "", "subset"]


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["lm-math-lora-dp8-seed0-aa", "lm-math-parallel-dp8-seed0-bb"], ["lora", "parallel"]),
        (["lm-math-lora-dp8-seed0-aa", "lm-math-head-dp3-seed1-bb"], ["lora dp8 seed0", "head dp3 seed1"]),
        (["lm-math-lora-dp8-seed0-aa", "lm-math-lora-dp8-seed0-bb"], ["aa", "bb"]),
        (["lm-lora-seed0-aa", "lm-head-seed0-bb", "lm-lora-seed0-cc"], ["lora aa", "head bb", "lora cc"]),
        (["lm-a-lora-aa", "lm-lora-bb"], ["lm-a-lora-aa", "lm-lora-bb"]),
        (["minilm-dp3 (3 runs)", "minilm-dp8 (3 runs)"], ["dp3 (3 runs)", "dp8 (3 runs)"]),
        (["one"], ["one"]),
    ],
)
def test_columns_are_called_by_what_their_names_differ_in(names, short):
    assert list(short_names(names).values()) == short
