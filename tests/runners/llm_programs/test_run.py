"""Task llm_programs from the command line: refusals, a whole smoke run, kills, budgets, what is written and what never
is.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from privlm.runners.llm_programs import config as task_config
from support.zygote import Finished, Zygote

from privlm import files, schema
from privlm.cli.compose import Words, compose
from privlm.errors import UsageError
from privlm.llm.program.trace import SCHEMA_FILE
from privlm.registry import tasks


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("privacy=dp_sgd",), "privacy: this task trains nothing"),
        (
            ("llm=endpoint", "llm.base_url=http://127.0.0.1:1/v1", "llm.model=m"),
            "llm=endpoint llm.api=chat cannot score given text (needed by row tree_nll, row tree_delta, row filter)",
        ),
        (("task.rows=[tree]",), "task.rows: 'tree' is not one of"),
        (("task.rows=[]",), "task.rows is empty"),
        (("task.rows=[cot,cot]",), "task.rows names one of them twice"),
        (("task.n_keep=11",), "task.n_keep=11 is more than task.num_candidates=10"),
        (("task.num_questions=0",), "task.num_questions must be greater than 0"),
        (("task.budget.calls=0",), "task.budget.calls must be greater than 0"),
        (("task.filter=tfidf",), "task.filter: 'tfidf' is not one of"),
        (("data.subset=some",), "data.subset: 'some' is not one of"),
        (("task.answer_pattern='answer is yes'",), "task.answer_pattern needs one group, around yes or no; it has 0"),
        (("task.answer_pattern='So: (yes|no)'",), "task.answer_pattern does not find the answer in 'Thus, the answer"),
        (("task.answer_pattern='(yes'",), "task.answer_pattern is no regular expression"),
        (("~llm",), "llm: this task asks a language model"),
    ],
)
def test_wrong_settings_are_refused_by_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compose(Words(("task=llm_programs", *words)))
    assert message in str(refusal.value)


@pytest.mark.torch_free
def test_rows_that_only_generate_may_ask_a_chat_server() -> None:
    words = ("llm=endpoint", "llm.base_url=http://127.0.0.1:1/v1", "llm.model=m", "task.rows=[no_cot,cot,golden]")
    assert compose(Words(("task=llm_programs", *words))).config.llm.api == "chat"


@pytest.mark.torch_free
def test_what_is_not_at_hand_is_named_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "find_spec", lambda name: None)
    words = ("scale=smoke", f"data.path={tmp_path}", "task.examples=nowhere.json", "data.paragraphs=none.json")
    with pytest.raises(UsageError) as refusal:
        task_config.inputs(compose(Words(("task=llm_programs", *words))).config)
    for message in ("bm25s", "data.path: no file train.json", "task.examples: no file", "data.paragraphs: no file"):
        assert message in str(refusal.value)


@pytest.mark.torch_free
def test_the_plan_counts_calls_without_torch() -> None:
    config = compose(Words(("task=llm_programs", "task.num_questions=5", "task.num_tree_questions=2"))).config
    plan = tasks()["llm_programs"].plan(config)
    assert plan["questions"] == 5
    assert plan["calls_filter_likelihood"] == 50
    assert (plan["calls_no_cot"], plan["calls_relevance"]) == (5, 10)
    assert plan["calls_tree_nll"] == 2 * (10 + 3 * 3)
    assert plan["calls_tree_delta"] == 2 * (10 + 3 * 3 * 3)
    assert plan["calls"] == sum(value for name, value in plan.items() if name.startswith("calls_"))
    assert plan["seconds_on_one_core"] > 0


# --- whole runs on a tiny model ---------------------------------------------------------------------------


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=llm_programs", "scale=smoke", f"runs={runs}", *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "llm_programs").iterdir()
    return directory


def table(directory: Path) -> Any:
    return json.loads((directory / "result.json").read_text())["rows"]


def items(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """What is kept of each item, but for what depends on when it ran."""
    kept, by_chance = {}, ("cached", "seconds", files.SEAL)
    for path in sorted(directory.glob("stages/*/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept[path.stem] = [{key: line[key] for key in line if key not in by_chance} for line in lines]
    assert kept
    return kept


def num_calls(directory: Path) -> int:
    with sqlite3.connect(directory / "llm_calls.sqlite") as database:
        return database.execute("SELECT count(*) FROM calls WHERE response_json IS NOT NULL").fetchone()[0]


SHORT = ("task.rows=[filter,no_cot,tree_delta]", "task.filters=[likelihood,none]", "task.num_questions=4")


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    runs = tmp_path_factory.mktemp("whole")
    finished = run(zygote, runs)
    assert finished.status == 0, finished.output
    return only_run(runs), finished


@pytest.fixture(scope="module")
def short(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    runs = tmp_path_factory.mktemp("short")
    finished = run(zygote, runs, *SHORT)
    assert finished.status == 0, finished.output
    return only_run(runs), finished


@pytest.mark.medium
def test_every_row_has_its_figures_and_costs(whole: tuple[Path, Finished]) -> None:
    directory, finished = whole
    result = json.loads((directory / "result.json").read_text())
    found = {row["metric"]: row for row in result["rows"]}
    for row in ("relevance", "no_cot", "cot", "tree_nll", "tree_delta", "golden", "golden_cot"):
        assert found[f"accuracy_{row}"]["ci_low"] <= found[f"accuracy_{row}"]["value"] + 1e-9
        assert f"unparsed_{row}" in found
    assert found["accuracy_tree_delta"]["n"] == 3
    assert found["top1_random"]["value"] == 1 / 8
    for name in ("likelihood", "black_box", "bm25", "none"):
        assert found[f"top5_{name}"]["value"] >= found[f"top1_{name}"]["value"]
    (note,) = [note for note in result["notes"] if note.startswith("tree_delta")]
    for word in ("always no", "unparsed", "60 calls", "forced", "tokens", "cached"):
        assert word in note
    assert "budget 60 calls a question" in finished.output
    assert {row["provenance"] for row in result["rows"]} == {"smoke"}
    assert files.read_json(directory / "privacy.json") == {"mechanism": "none", "trains": False}


@pytest.mark.medium
def test_the_trace_is_valid_and_is_shown_as_a_tree(whole: tuple[Path, Finished], zygote: Zygote) -> None:
    directory, _ = whole
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    lines = [json.loads(line) for line in (directory / "trace.jsonl").read_text().splitlines()]
    for line in lines:
        validator.validate(line)
    item = items(directory)["tree_delta"][0]["item"]
    shown = zygote.run("show", str(directory), "--item", f"tree_delta/{item}")
    assert shown.status == 0, shown.output
    for word in ("answer_by_search (done", "kept: ", "scores: ", "ranks: ", "Question:", "NLL "):
        assert word in shown.output
    assert "no_cot/" not in shown.output
    everything = zygote.run("show", str(directory), "--item", item)
    assert "no_cot/" in everything.output
    unknown = zygote.run("show", str(directory), "--item", item[:-2] + "zz")
    assert (unknown.status, "did you mean" in unknown.output) == (2, True)


@pytest.mark.medium
def test_no_text_of_the_data_is_written_outside_trace_and_record(whole: tuple[Path, Finished]) -> None:
    directory, _ = whole
    text = json.loads((directory / "trace.jsonl").read_text().splitlines()[1])["continuation"].strip().encode()
    holders = {path.name for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()}
    assert holders <= {"trace.jsonl", "llm_calls.sqlite", "llm_calls.sqlite-wal"}


@pytest.mark.medium
@pytest.mark.parametrize("fault", [("kill", 20), ("torn", 27), ("kill", 60)])
def test_a_killed_run_makes_the_missing_calls_and_gives_the_same_table(
    fault: tuple[str, int], short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    killed = run(zygote, tmp_path, *SHORT, fault=fault)
    assert killed.status == -9, killed.output
    before = num_calls(only_run(tmp_path))
    finished = run(zygote, tmp_path, *SHORT)
    assert finished.status == 0, finished.output
    assert f"llm=tiny: {num_calls(directory) - before:,} calls" in finished.output
    assert table(only_run(tmp_path)) == table(directory)
    assert items(only_run(tmp_path)) == items(directory)


@pytest.mark.medium
def test_a_spent_budget_ends_the_run_cleanly_and_a_larger_one_goes_on(
    short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    stopped = run(zygote, tmp_path, *SHORT, "llm.budget.calls=45", "llm.trace=hash")
    assert stopped.status == 0, stopped.output
    assert "budget_exhausted: 12/15 items done" in stopped.output
    assert num_calls(only_run(tmp_path)) == 45
    trace = (only_run(tmp_path) / "trace.jsonl").read_text()
    assert "Question" not in trace
    finished = run(zygote, tmp_path, *SHORT)
    assert finished.status == 0, finished.output
    assert table(only_run(tmp_path)) == table(directory)
    assert items(only_run(tmp_path)) == items(directory)
