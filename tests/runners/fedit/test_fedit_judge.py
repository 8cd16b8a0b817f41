"""The judge of task fedit: how replies are read, both orders, kills, a judge that goes away, and replay."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from privlm.runners.fedit.judge import Judged, ask_judge
from privlm.runners.fedit.judge_prompts import outcome, rating, verdict
from privlm.runners.fedit.measure import mean_rating, report_judged
from privlm.runners.fedit.questions import Question
from support.faulty_proxy import FaultyProxy, answer, failing
from support.llm import ScriptedBackend
from support.zygote import Finished, Zygote

from privlm import files, rows
from privlm.llm.client import LanguageModel
from privlm.llm.types import Answer

QUESTIONS = ("Why do kites fly?", "What is glass?", "Name a tree.", "Count to three.")


# --- what a reply says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("[[7]]", 7),
        ("Clear and true. Rating: [[ 10 ]].", 10),
        ("[[7]] or rather, yes, [[7]]", 7),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[7.5]]", None),
        ("[[7/10]]", None),
        ("[[7 of 10]]", None),
        ("[[07]]", None),
        ("[[7]] no, [[8]]", None),
        ("7", None),
        ("[7]", None),
        ("", None),
    ],
)
def test_a_rating_is_one_whole_number_of_1_to_10_in_double_brackets(text: str, read: int | None) -> None:
    assert rating(text) == read


def test_a_verdict_is_one_letter_and_a_pair_that_does_not_agree_is_a_flip() -> None:
    assert [verdict(text) for text in ("So [[A]]", "[[B]]", "[[C]]", "[[D]]", "[[a]]", "[[A]] [[B]]", "A", "")] == [
        "A", "B", "C", None, None, None, None, None,
    ]  # fmt: skip
    assert [outcome(*pair) for pair in ("AB", "BA", "CC", "AA", "BB", "AC", "CB")] == [
        "win", "loss", "tie", "flip", "flip", "flip", "flip",
    ]  # fmt: skip
    assert outcome("A", None) is outcome(None, "B") is None


class Reports:
    """What is needed of a Stage."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def report(
        self, *results: Any, split: str | None = None, unit: str = "fraction", n: int | None = None, **numbers: Any
    ) -> None:
        assert split == "judge" or {result.split for result in results} == {"judge"}
        self.values |= numbers | {result.metric: result for result in results}


def test_what_is_invalid_is_counted_and_weighs_nothing() -> None:
    line = {"prompt_tokens": 3, "completion_tokens": 1, "usd": None}
    said = [{"said": 8, "status": "ok"}, {"said": None, "status": "ok"}, {"said": None, "status": "refused"}]
    stage: Any = Reports()
    report_judged(stage, Judged([], [(8, 4), (None, 9), (None, 2)], [one | line for one in said], 6, None))
    found = stage.values
    assert (found["judge_calls"], found["judge_invalid"], found["judge_refused"]) == (3, 1, 1)
    assert (found["judge_score"].value, found["judge_score"].n) == (pytest.approx(8), 1)
    assert found["relative_score"].value == 2
    assert (found["judge_tokens"], "judge_usd" in found) == (12, False)
    pairs: Any = Reports()
    report_judged(pairs, Judged(["win", "win", "flip", "tie", None], [], [], 10, None))
    shares = {name: pairs.values[f"judge_{name}"].value for name in ("win", "tie", "loss", "flip")}
    assert shares == {"win": 0.5, "tie": 0.5, "loss": 0, "flip": 0.25}
    assert pairs.values["judge_win"].n == 4


def test_a_mean_rating_has_an_interval_within_the_scale() -> None:
    ratings = np.random.default_rng(0).integers(1, 11, size=40).tolist()
    found = mean_rating(ratings)
    assert found.value == pytest.approx(np.mean(ratings))
    assert 1 <= found.ci_low < found.value < found.ci_high <= 10
    assert mean_rating([10] * 5).ci_low < 10


# --- asking ---------------------------------------------------------------------------------------------------------


class Kept:
    """What is needed of a Stage to ask: its configuration, and rows that are kept in a folder."""

    def __init__(self, folder: Path, judge: str) -> None:
        self.folder = folder
        task = SimpleNamespace(judge=judge, judge_max_tokens=8, judge_required=False)
        self.config = SimpleNamespace(task=task)

    def rows(self, path: str, items: Any, answer: Any, *, interruptible: bool) -> list[dict[str, Any]]:
        rows.answer_open(self.folder / path, items, answer, lambda done: None)
        return list(rows.answered(self.folder / path, items).values())


def ask(folder: Path, judge: str, theirs: list[str] | None, reply: Callable[[str], str]) -> tuple[Judged, list[Any]]:
    backend = ScriptedBackend(lambda request: Answer(reply(request.prompt[0].content), "ok", prompt_tokens=1))
    questions = [Question(text, "") for text in QUESTIONS]
    stage: Any = Kept(folder, judge)
    return ask_judge(stage, LanguageModel(backend, cache="off"), questions, OURS, theirs), backend.asked


OURS, THEIRS = ["a", "bb", "a", "bb"], ["bb", "a", "bb", "bb"]


def test_a_judge_that_goes_by_the_answer_is_not_moved_by_the_order(tmp_path: Path) -> None:
    judged, asked = ask(tmp_path, "pairwise", THEIRS, lambda text: f"[[{judgement(text)}]]")
    assert judged.outcomes == ["loss", "win", "loss", "tie"]
    assert len(asked) == 7  # the two orders of equal answers are one prompt
    assert {request.sampling.temperature for request in asked} == {0}
    again, asked = ask(tmp_path, "pairwise", THEIRS, lambda text: "[[A]]")
    assert (again.outcomes, asked) == (judged.outcomes, [])


def test_a_judge_that_likes_what_comes_first_decides_nothing(tmp_path: Path) -> None:
    judged, _ = ask(tmp_path, "pairwise", THEIRS, lambda text: "[[A]]")
    assert judged.outcomes == ["flip"] * 4


def test_each_answer_is_rated_and_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    def reply(text: str) -> str:
        return "[[11]]" if QUESTIONS[1] in text else f"[[{judgement(text)}]]"

    both, _ = ask(tmp_path, "single", THEIRS, reply)
    assert both.ratings == [(2, 3), (None, None), (2, 3), (3, 3)]
    alone, _ = ask(tmp_path, "single", None, reply)
    assert alone.ratings == [(2,), (None,), (2,), (3,)]
    assert not alone.outcomes
    assert alone.num_asked == 4


# --- whole runs -----------------------------------------------------------------------------------------------------


def judgement(text: str) -> str:
    """A judge that likes answers by themselves, whoever gave them: in pairs the greater text, else its length."""
    if "<answer of A>" in text:
        a, b = (re.search(rf"<answer of {name}>\n(.*)\n</answer of {name}>", text, re.DOTALL)[1] for name in "AB")
        return "C" if a == b else "A" if a > b else "B"
    return str(1 + len(re.search(r"<answer>\n(.*)\n</answer>", text, re.DOTALL)[1]) % 10)


def says(handler: Any, body: dict[str, Any]) -> None:
    content = f"My view: [[{judgement(body['messages'][-1]['content'])}]]"
    handler.reply(200, answer(body, message={"role": "assistant", "content": content}))


@pytest.fixture
def server() -> Iterator[FaultyProxy]:
    with FaultyProxy() as server:
        server.always(says)
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for name, numbers in {"train": range(12), "test": range(20, 23)}.items():
        lines = [{"instruction": f"Say {n}.", "response": f"{n}!"} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "questions.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in QUESTIONS))
    return folder


def run(zygote: Zygote, runs: Path, data: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    fixed = (
        "data=instructions", f"data.path={data}", f"task.questions={data}/questions.jsonl", "data.template=plain",
        "trainer.steps=4", "task.max_new_tokens=6", "task.num_generated=0", "model.max_length=64",
    )  # fmt: skip
    return zygote.run("run", "task=fedit", "scale=smoke", f"runs={runs}", *fixed, *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "fedit").iterdir()
    return directory


@pytest.fixture(scope="module")
def base(zygote: Zygote, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the untrained model, whose answers others are compared with."""
    runs = tmp_path_factory.mktemp("base")
    finished = run(zygote, runs, data, "adapter=none")
    assert finished.status == 0, finished.output
    return only_run(runs)


def asking(server: FaultyProxy, base: Path, judge: str = "pairwise") -> tuple[str, ...]:
    return (
        f"task.judge={judge}", f"task.compare_with={base}", "llm=endpoint", f"llm.base_url={server.url}",
        "llm.model=m", "llm.api_key_env=null", "llm.concurrency=1", "llm.retry.max_attempts=1",
    )  # fmt: skip


def figures(runs: Path) -> dict[str, Any]:
    rows = files.read_json(only_run(runs) / "result.json")["rows"]
    return {row["metric"]: row for row in rows if row["split"] == "judge"}


def answers(directory: Path) -> list[str]:
    lines = [json.loads(line) for line in (directory / "stages/evaluate/questions.jsonl").read_text().splitlines()]
    return [line["text"].strip() for line in sorted(lines, key=lambda line: line["item"])]


@pytest.mark.medium
def test_pairs_are_judged_in_both_orders_and_a_killed_run_asks_nothing_twice(
    server: FaultyProxy, base: Path, data: Path, zygote: Zygote, tmp_path: Path
) -> None:
    finished = run(zygote, tmp_path / "whole", data, *asking(server, base))
    assert finished.status == 0, finished.output
    found, asked = figures(tmp_path / "whole"), Counter(server.prompts())
    assert len(asked) >= 4
    pairs = list(zip(answers(only_run(tmp_path / "whole")), answers(base), strict=True))
    wanted = {"win": sum(a > b for a, b in pairs), "loss": sum(a < b for a, b in pairs)}
    for name, number in wanted.items():
        assert found[f"judge_{name}"]["value"] == number / 4
    assert wanted["win"] + wanted["loss"] > 0  # training has changed what is answered
    assert (found["judge_flip"]["value"], found["judge_win"]["n"], found["judge_invalid"]["value"]) == (0, 4, 0)
    assert all(call["temperature"] == 0 for call in server.calls)
    for question in QUESTIONS:
        assert sum(f"<question>\n{question}\n" in prompt for prompt in asked) in (1, 2)

    server.calls.clear()
    killed = run(zygote, tmp_path / "killed", data, *asking(server, base), fault=("kill", finished.writes - 9))
    assert killed.status == -9, killed.output
    again = run(zygote, tmp_path / "killed", data, *asking(server, base))
    assert again.status == 0, again.output
    assert figures(tmp_path / "killed") == found
    assert Counter(server.prompts()) == asked

    recorded = tmp_path / "recorded.jsonl"
    lines = [{"prompt": text, "answer": f"[[{judgement(text)}]]"} for text in asked]
    recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("task.judge=pairwise", f"task.compare_with={base}", "llm=replay", f"llm.path={recorded}")
    replayed = run(zygote, tmp_path / "replay", data, *given)
    assert replayed.status == 0, replayed.output
    again = figures(tmp_path / "replay")
    for name in ("judge_win", "judge_tie", "judge_loss", "judge_flip", "judge_invalid"):
        assert again[name]["value"] == found[name]["value"]


@pytest.mark.medium
def test_a_judge_that_goes_away_leaves_the_rest_and_is_asked_the_rest(
    server: FaultyProxy, base: Path, data: Path, zygote: Zygote, tmp_path: Path
) -> None:
    server.next(*[says] * 2)
    server.always(failing(503))
    words = (*asking(server, base, "single"), "adapter=none")
    stopped = run(zygote, tmp_path, data, *words)
    assert stopped.status == 0, stopped.output
    assert "judge_unreachable: 4/8" in stopped.output  # of two runs that answer alike, each prompt is asked once
    status = files.read_json(only_run(tmp_path) / "status.json")
    assert (status["state"], status["stages"]["evaluate"]["state"]) == ("interrupted", "done")
    server.always(says)
    server.calls.clear()
    finished = run(zygote, tmp_path, data, *words)
    assert finished.status == 0, finished.output
    assert len(server.calls) == 2
    assert (figures(tmp_path)["judge_score"]["n"], figures(tmp_path)["relative_score"]["value"]) == (4, 1)


@pytest.mark.medium
def test_a_required_judge_that_is_not_there_ends_the_run_before_training(
    base: Path, data: Path, zygote: Zygote, tmp_path: Path
) -> None:
    with FaultyProxy() as server:
        words = asking(server, base)
    refused = run(zygote, tmp_path, data, *words, "task.judge_required=true")
    assert refused.status == 3, refused.output
    assert "Traceback" not in refused.output
    assert "train" not in files.read_json(only_run(tmp_path) / "status.json")["stages"]


@pytest.mark.medium
def test_only_runs_that_were_asked_alike_are_compared(base: Path, data: Path, zygote: Zygote, tmp_path: Path) -> None:
    given = ("task.judge=pairwise", "llm=tiny", f"task.compare_with={base}")
    for words, message in {
        ("task.max_new_tokens=7",): "has task.max_new_tokens=6, and this run 7",
        ("task.questions=embedded",): "has answered 0 of the 10 questions",
    }.items():
        refused = run(zygote, tmp_path, data, *given, *words)
        assert (refused.status, message in refused.output) == (2, True), refused.output
