"""Task pkg from the command line: a reader that uses evidence, kills, what leaves, privacy, other schemas."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from privlm.runners.pkg.outbound import Corpus
from privlm.runners.pkg.questions_data import load
from support.composed import composed
from support.faulty_proxy import FaultyProxy, answer, changed
from support.zygote import Finished, Zygote

from privlm import files
from privlm.registry import tasks

pytestmark = pytest.mark.medium

SHORT = ("trainer.steps=4", "trainer.checkpoint_every=2", "data.num_test_questions=4", "data.max_train_examples=16")
FEW = ("task.guides=[none,genread,pkg,gold]",)


@cache
def labels() -> dict[str, str]:
    """Gold evidence of the embedded test claims -> true or false."""
    return {
        row.background: row.answers[0] for row in load(composed("task=pkg", "data.num_test_questions=60").data).test
    }


def reads_evidence(handler: Any, body: dict[str, Any]) -> None:
    """Answers a claim by its gold evidence, where that is the background; else it says true."""
    text = body["messages"][-1]["content"]
    found = next(
        (label for evidence, label in labels().items() if text.startswith(f"Background: {evidence}\n")), "true"
    )
    content = "a passage about it" if "Write a short background" in text else f"The claim is {found}."
    handler.reply(200, answer(body, message={"role": "assistant", "content": content}))


@pytest.fixture
def server() -> Iterator[FaultyProxy]:
    with FaultyProxy() as server:
        server.always(reads_evidence)
        yield server


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=pkg", "scale=smoke", f"runs={runs}", *words, fault=fault)


def asking(server: FaultyProxy) -> tuple[str, ...]:
    return ("llm=endpoint", f"llm.base_url={server.url}", "llm.model=m", "llm.api_key_env=null", "llm.concurrency=1")


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "pkg").iterdir()
    return directory


def result(runs: Path) -> Any:
    return files.read_json(only_run(runs) / "result.json")


def figures(runs: Path) -> dict[tuple[str, str | None], Any]:
    return {(row["metric"], row["split"]): row for row in result(runs)["rows"]}


def value(runs: Path, metric: str, split: str | None) -> float:
    return figures(runs)[metric, split]["value"]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_guide_has_a_row_and_a_random_model_is_no_reader(zygote: Zygote, tmp_path: Path) -> None:
    finished = run(zygote, tmp_path)
    assert finished.status == 0, finished.output
    found = figures(tmp_path)
    for guide in ("none", "cot", "genread", "bm25", "dense", "pkg", "gold"):
        accuracy = found["accuracy", guide]
        assert accuracy["n"] == 8
        assert accuracy["ci_low"] <= accuracy["value"] <= accuracy["ci_high"]
        assert found["calls", guide]["value"] == (16 if guide in ("cot", "genread") else 8)
        assert found["unparsed", guide]["value"] + found["empty", guide]["value"] >= 1
    assert found["guide_calls", "pkg"]["value"] == 8
    assert found["background_loss", "test"]["value"] < found["background_loss_before", "test"]["value"]
    assert any("gold (" in note and "is not above none" in note for note in result(tmp_path)["notes"])
    with sqlite3.connect(only_run(tmp_path) / "llm_calls.sqlite") as database:
        spent = dict(database.execute("SELECT payer, calls FROM spent"))
    bills = {payer.rpartition(" ")[2]: calls for payer, calls in spent.items()}
    assert bills["guide"] == 8
    assert bills["reader"] > 40


def test_gold_evidence_is_above_no_guide_for_a_reader_that_uses_it(
    server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    words = (*SHORT, *FEW, *asking(server), "data.num_test_questions=20", "llm.price.input=1", "llm.price.output=2")
    finished = run(zygote, tmp_path, *words, "task.audit_outbound=true")
    assert finished.status == 0, finished.output
    assert value(tmp_path, "accuracy", "gold") == 1
    true = value(tmp_path, "always_true", "all")
    assert value(tmp_path, "accuracy", "none") == true < 1
    gain = figures(tmp_path)["gain_over_none", "gold"]
    assert gain["value"] == pytest.approx(1 - true)
    assert gain["ci_low"] > 0
    assert value(tmp_path, "mcnemar_p", "gold") < 0.05
    assert not any("is not above none" in note for note in result(tmp_path)["notes"])
    assert value(tmp_path, "usd", "none") == pytest.approx(20 * (4 * 1 + 2 * 2) / 1e6)
    assert value(tmp_path, "calls", "genread") == 40

    lines = [json.loads(line) for line in (only_run(tmp_path) / "outbound.jsonl").read_text().splitlines()]
    written = Counter(line["request"]["prompt"][0]["content"] for line in lines)
    assert written == Counter(server.prompts())
    assert all(line["run"] and line["item"] for line in lines)


def test_a_run_killed_in_any_stage_asks_nothing_twice_and_ends_equal(
    server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    words = (*SHORT, *FEW, *asking(server))
    finished = run(zygote, tmp_path / "whole", *words)
    assert finished.status == 0, finished.output
    asked, wanted = Counter(server.prompts()), result(tmp_path / "whole")["rows"]
    stages = set()
    for share in (0.25, 0.5, 0.75, 0.93):
        server.calls.clear()
        runs = tmp_path / str(share)
        killed = run(zygote, runs, *words, fault=("kill", int(share * finished.writes)))
        assert killed.status == -9, killed.output
        status = files.read_json(only_run(runs) / "status.json")
        stages.add(next(name for name, stage in status["stages"].items() if stage["state"] == "running"))
        again = run(zygote, runs, *words)
        assert again.status == 0, again.output
        assert result(runs)["rows"] == wanted
        assert Counter(server.prompts()) == asked
    assert stages == {"align", "generate", "read", "score"}


def test_a_refusing_silent_or_rambling_reader_is_counted_apart(
    server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    refused = changed(message={"role": "assistant", "content": None, "refusal": "I cannot help with that."})
    silent = changed(message={"role": "assistant", "content": ""})
    rambling = changed(message={"role": "assistant", "content": "It is neither true nor false."})
    server.next(refused, silent, rambling)
    finished = run(zygote, tmp_path, *SHORT, *asking(server), "task.guides=[none]")
    assert finished.status == 0, finished.output
    for status in ("refused", "empty", "unparsed"):
        assert value(tmp_path, status, "none") == 1


def test_a_reader_that_goes_down_costs_nothing_that_was_answered(
    server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    words = (*SHORT, *asking(server), "task.guides=[none,gold]", "llm.retry.max_attempts=1")
    server.next(*[reads_evidence] * 3)
    server.always(lambda handler, body: handler.reply(503, {"error": {"message": "no", "code": None}}))
    finished = run(zygote, tmp_path, *words)
    assert finished.status == 3, finished.output
    assert "Traceback" not in finished.output
    server.always(reads_evidence)
    server.calls.clear()
    again = run(zygote, tmp_path, *words)
    assert again.status == 0, again.output
    assert len(server.calls) == 5


def test_a_spent_budget_stops_cleanly_and_a_larger_one_goes_on(
    server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    words = (*SHORT, *asking(server), "task.guides=[none,genread]")
    stopped = run(zygote, tmp_path, *words, "llm.budget.calls=6")
    assert stopped.status == 0, stopped.output
    assert "budget_exhausted" in stopped.output
    finished = run(zygote, tmp_path, *words)
    assert finished.status == 0, finished.output
    assert len(server.calls) == 12


# --- private mode ---------------------------------------------------------------------------------------------------

SECRET = (
    "The {n}th lighthouse at Kestrel Point was built by three sisters and has been painted green in every spring since "
    "the great storm took its first lamp from the tower."
)


@pytest.fixture(scope="module")
def lighthouses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Retrieval by words finds the training rows for these questions: what private mode is for."""
    folder = tmp_path_factory.mktemp("lighthouses")
    train = [
        {"id": f"s{n}", "question": f"What is said of {n}?", "answer": "it", "background": SECRET.format(n=n)}
        for n in range(12)
    ]
    test = [
        {"id": f"t{n}", "question": f"Who painted the {n}th lighthouse green?", "answer": "sisters"} for n in range(4)
    ]
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "test.jsonl", test)
    return folder


@pytest.mark.parametrize("on_leak", ["block", "redact", "warn"])
def test_rows_of_the_alignment_set_do_not_leave_in_private_mode(
    on_leak: str, lighthouses: Path, server: FaultyProxy, zygote: Zygote, tmp_path: Path
) -> None:
    words = ("data=pkg_jsonl", f"data.path={lighthouses}", "task.guides=[none,bm25]", *asking(server))
    mode = ("task.private_mode=true", f"task.on_leak={on_leak}", "task.audit_outbound=true")
    finished = run(zygote, tmp_path, *words, *mode)
    assert finished.status == 0, finished.output
    corpus = Corpus(load(composed("task=pkg", "data=pkg_jsonl", f"data.path={lighthouses}").data).train)
    arrived = sum(bool(corpus.found_in(prompt, "")) for prompt in server.prompts())
    assert arrived == (4 if on_leak == "warn" else 0)
    assert len(server.calls) == (4 if on_leak == "block" else 8)
    assert value(tmp_path, "blocked", "bm25") == (4 if on_leak == "block" else 0)
    assert value(tmp_path, "leaks", "bm25") == 4
    assert value(tmp_path, "leaks", "none") == 0
    (note,) = [note for note in result(tmp_path)["notes"] if note.startswith("private mode")]
    assert "bm25 4" in note
    assert "hides the corpus, not the questions" in note
    lines = (only_run(tmp_path) / "outbound.jsonl").read_text().splitlines()
    assert len(lines) == len(server.calls)


def test_a_guide_that_writes_from_memory_sends_no_row(server: FaultyProxy, zygote: Zygote, tmp_path: Path) -> None:
    finished = run(zygote, tmp_path, *SHORT, *asking(server), "task.guides=[none,pkg]", "task.private_mode=true")
    assert finished.status == 0, finished.output
    corpus = Corpus(load(composed("task=pkg", "scale=smoke", *SHORT).data).train)
    assert not any(corpus.found_in(prompt, "") for prompt in server.prompts())
    assert value(tmp_path, "leaks", "pkg") == 0


# --- privacy, guide_run, predictor ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("private")
    words = ("task.guides=[none,pkg]", "privacy=dp_sgd", "privacy.rng=reproducible")
    finished = run(zygote, runs, *SHORT, *words)
    assert finished.status == 0, finished.output
    return runs


def test_a_private_alignment_is_priced_in_the_table(private: Path, zygote: Zygote) -> None:
    price = files.read_json(only_run(private) / "privacy.json")
    assert price["guarantee"]
    assert 0 < price["epsilon"] <= 8
    assert value(private, "epsilon", None) == pytest.approx(price["epsilon"])
    shown = zygote.run("tables", "pkg_small", "--runs", str(private), "--scale", "smoke")
    assert shown.status == 0, shown.output


def test_a_guide_is_used_by_another_run_on_the_same_data(private: Path, zygote: Zygote, tmp_path: Path) -> None:
    words = (*SHORT, "task.guides=[none,pkg]", f"task.guide_run={only_run(private)}")
    finished = run(zygote, tmp_path, *words)
    assert finished.status == 0, finished.output
    assert not (only_run(tmp_path) / "stages" / "align").exists()
    notes = files.read_json(only_run(tmp_path) / "result.json")["notes"]
    assert any(note.startswith("guide: aligned by") and "with guarantee: (8.000, " in note for note in notes), notes
    assert value(tmp_path, "background_tokens", "pkg") == value(private, "background_tokens", "pkg")
    other = run(zygote, tmp_path / "b", *words, "model.random.hidden_size=32")
    assert (other.status, "Traceback" in other.output) == (2, False), other.output
    path = write_jsonl(
        tmp_path / "own.jsonl",
        [{"id": n, "question": f"{n}?", "answer": "x", "background": f"About {n}."} for n in range(20)],
    )
    stranger = run(zygote, tmp_path / "c", *words, "data=pkg_jsonl", f"data.path={path}", "data.kind=question")
    assert stranger.status == 2
    assert "has learnt from other data" in stranger.output
    nowhere = run(zygote, tmp_path / "d", *SHORT, "task.guide_run=/nowhere")
    assert "task.guide_run: /nowhere is no run directory" in nowhere.output


def test_the_predictor_writes_backgrounds_and_answers(private: Path, zygote: Zygote, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "Ice floats."}, {"question": "Iron floats."}])
    predicted = zygote.run("predict", str(only_run(private)), str(rows))
    assert predicted.status == 0, predicted.output
    found = [json.loads(line) for line in predicted.output.splitlines() if line.startswith("{")]
    assert len(found) == 2
    assert set(found[0]) == {"background", "answer", "text", "status"}
    write_jsonl(rows, [{"claim": "Ice floats."}])
    refused = zygote.run("predict", str(only_run(private)), str(rows))
    assert refused.status == 2
    assert "row 1: no question in column 'question'" in refused.output
    evaluated = zygote.run("evaluate", str(only_run(private)))
    assert evaluated.status == 0, evaluated.output
    assert "accuracy" in evaluated.output
    exported = zygote.run("export", str(only_run(private)), str(tmp_path / "out"))
    assert exported.status == 0, exported.output
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert "{question}" in (tmp_path / "out" / "prompt.txt").read_text()


# --- other schemas --------------------------------------------------------------------------------------------------


def choices(n: int) -> dict[str, Any]:
    return {"options": [f"red {n}", f"green {n}", f"blue {n}"], "answer": "ABC"[n % 3]}


SCHEMAS: dict[str, Any] = {
    "nq_table": lambda n: {"answer": [f"item {n}", f"the item {n}"], "background": f"year | item\n19{n:02} | item {n}"},
    "medmcqa": lambda n: {"background": f"Explanation {n}.", **choices(n)},
    "scienceqa": lambda n: {"background": f"Lecture {n}.", "context": f"Look at {n}.", **choices(n)},
    "pkg_jsonl": lambda n: {"background": f"Text {n}.", "answer": f"word {n}"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_questions_of_each_schema_run_from_json_lines(name: str, zygote: Zygote, tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": f"Which is item {n}?", **SCHEMAS[name](n)} for n in range(20)]
    path = tmp_path / "own.jsonl" if name == "pkg_jsonl" else tmp_path
    if name == "pkg_jsonl":
        write_jsonl(path, rows)
    else:
        write_jsonl(path / "train.jsonl", rows[:15])
        write_jsonl(path / ("dev.jsonl" if name == "medmcqa" else "test.jsonl"), rows[15:])
    more = ("trainer.steps=2", "trainer.batch_size=4", "task.guides=[none,bm25,pkg,gold]")
    finished = run(zygote, tmp_path / "runs", f"data={name}", f"data.path={path}", *more)
    assert finished.status == 0, finished.output
    assert ("accuracy", "pkg") in figures(tmp_path / "runs")


def test_an_item_pool_needs_passages(zygote: Zygote, tmp_path: Path) -> None:
    words = (*SHORT, "task.guides=[bm25]", "task.retrieval_pool=item")
    assert run(zygote, tmp_path, *words).status == 0
    rows = [{"id": str(n), "question": f"Which is {n}?", "answer": "x", "background": "y"} for n in range(20)]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    refused = run(zygote, tmp_path, "data=pkg_jsonl", f"data.path={path}", *words[-2:])
    assert refused.status == 2
    assert "no texts in field 'passages'" in refused.output


@pytest.mark.torch_free
def test_the_plan_counts_calls_without_torch() -> None:
    plan = tasks()["pkg"].plan(composed("task=pkg", "scale=smoke"))
    assert (plan["training_examples"], plan["questions"], plan["steps"]) == (64, 8, 30)
    assert (plan["calls_none"], plan["calls_cot"], plan["calls"], plan["guide_calls"]) == (8, 16, 72, 8)
