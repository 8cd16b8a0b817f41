"""Whole runs of task=causal against a server on loopback: killed, out of budget, refused; the agent; bad settings."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import forked
from support.faulty_proxy import FaultyProxy, changed
from support.scripted import ScriptedModel

from privlm.cli import main

pytestmark = pytest.mark.medium

CANARY = "canary-key-4711"


@pytest.fixture
def server() -> Iterator[FaultyProxy]:
    """Answers Yes to everything, after a moment."""
    with FaultyProxy(delay=0.01) as proxy:
        proxy.always(changed(message={"role": "assistant", "content": "Yes."}))
        yield proxy


def words(url: str, folder: Path, *overrides: str) -> list[str]:
    return [
        "run", "task=causal", "task.suite=tuebingen", "llm=endpoint", f"llm.base_url={url}", "llm.model=scripted",
        "task.num_items=20", f"runs={folder / 'runs'}", *overrides,
    ]  # fmt: skip


def run(url: str, folder: Path, *overrides: str) -> tuple[int, str, str]:
    return forked.start(words(url, folder, *overrides), folder, OPENAI_API_KEY=CANARY).wait()


def directory(folder: Path) -> Path:
    (found,) = (folder / "runs" / "causal").iterdir()
    return found


def result(folder: Path) -> dict[str, Any]:
    return json.loads((directory(folder) / "result.json").read_text())


def num_stored(folder: Path) -> int:
    paths = list((folder / "runs").rglob("llm_calls.sqlite"))
    if not paths:
        return 0
    with sqlite3.connect(paths[0]) as record:
        try:
            return record.execute("SELECT count(*) FROM calls WHERE status = 'ok'").fetchone()[0]
        except sqlite3.OperationalError:  # not made yet
            return 0


def test_without_a_key_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(words("http://127.0.0.1:1/v1", tmp_path)) == 2
    assert "the environment variable OPENAI_API_KEY is not set" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_run_killed_in_the_middle_asks_what_is_missing(server: FaultyProxy, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(server.url, whole)[0] == 0
    num_calls = len(server.calls)
    assert num_calls == 20 * 2 * 2
    server.delay = 0.2
    command = forked.start(words(server.url, killed), killed, OPENAI_API_KEY=CANARY)
    wait_for(lambda: num_stored(killed) > 10)
    command.signal(signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    done = num_stored(killed)
    assert 10 < done < num_calls
    server.calls.clear()
    server.delay = 0.01
    status, _, errors = run(server.url, killed)
    assert status == 0, errors
    assert len(server.calls) == num_calls - done
    assert result(killed)["rows"] == result(whole)["rows"]
    assert (directory(killed) / "answers.jsonl").read_bytes() == (directory(whole) / "answers.jsonl").read_bytes()
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path for path, content in written.items() if CANARY.encode() in content] == []
    with_prompts = {path.name for path, content in written.items() if b"altitude" in content.lower()}
    assert with_prompts <= {"llm_calls.sqlite", "llm_calls.sqlite-wal"}


def test_an_exhausted_budget_prints_what_there_is_and_goes_on(server: FaultyProxy, tmp_path: Path) -> None:
    status, output, errors = run(server.url, tmp_path, "llm.budget.calls=10")
    assert status == 0, errors
    assert "budget_exhausted" in output
    assert "5/40 items done" in output  # each is asked in both orders of its options
    status, output, _ = run(server.url, tmp_path)
    assert status == 0
    assert "budget_exhausted" not in output
    values = {row["metric"]: row["value"] for row in result(tmp_path)["rows"]}
    assert values["accuracy"] == 0.5
    assert values["position_swap_consistency"] == 1
    assert len(server.calls) == 80


def test_refusals_and_cut_answers_are_counted(server: FaultyProxy, tmp_path: Path) -> None:
    server.always(changed(message={"role": "assistant", "content": ""}, finish_reason="content_filter"))
    status, _, errors = run(server.url, tmp_path, "task.num_items=2", "task.swap_options=false")
    assert status == 0, errors
    values = {row["metric"]: row["value"] for row in result(tmp_path)["rows"]}
    assert (values["refused"], values["unparsed"], values["accuracy"]) == (4, 4, 0)
    assert values["accuracy_upstream"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=dp_sgd"], "privacy=dp_sgd: task=causal asks a model and trains nothing"),
        (["task.suite=tubingen"], "task.suite: 'tubingen' is not one of"),
        (["task.suite=[crass,crass]"], "task.suite: name at least one suite, and each once"),
        (["task.parser=lenient"], "task.parser: 'lenient' is not one of strict, upstream"),
        (["task.n_samples=3"], "task.n_samples above 1 needs task.temperature above 0"),
        (["model=tiny"], "task=causal trains no model"),
        (["task.suite=normality"], "causal_judgment.json does not ship with PrivLM"),
        (["data.path=/nowhere"], "data.path: no folder /nowhere"),
        (["task.discovery.num_nodes=8"], "task.discovery needs task.suite=neuropathic_pair"),
    ],
)
def test_wrong_settings_are_one_message(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["run", "task=causal", "llm=tiny", f"runs={tmp_path / 'runs'}", *overrides])
    assert status == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites = "task.suite=[tuebingen,arctic]"
    assert main(["run", "task=causal", suites, "llm=tiny", f"runs={tmp_path}", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["calls_tuebingen"], plan["calls_arctic"], plan["calls"]) == (432, 132, 564)
    assert list(tmp_path.iterdir()) == []


def test_the_agent_argues_for_both_directions_then_judges() -> None:
    from privlm.runners.causal.agent import causal_agent

    from privlm.llm.program import run_program

    def write(prompt: Any) -> str:
        text = prompt[-1].content
        if "by what mechanism" in text:
            return "Heat." if "could rain change" in text else "None."
        return "B" if "could not be read" in text else "A or B"

    model = ScriptedModel(write)
    found = run_program(causal_agent, "rain", "the river", model=model)
    assert (found.value, found.status, found.calls) == ("B", "done", 4)
    assert [len(batch) for batch in model.batches] == [2, 1, 1]
    assert "A. rain changes the river. Heat.\nB. the river changes rain. None." in model.prompts[2][-1].content


def test_the_agent_is_a_prompting_of_the_pairs(server: FaultyProxy, tmp_path: Path) -> None:
    server.always(changed(message={"role": "assistant", "content": "A"}))
    status, _, errors = run(server.url, tmp_path, "task.prompting=program", "task.num_items=4")
    assert status == 0, errors
    values = {row["metric"]: row["value"] for row in result(tmp_path)["rows"]}
    assert (values["accuracy"], values["unparsed"], values["position_swap_consistency"]) == (1, 0, 0)
    assert len(server.calls) == 2 * 8  # the arguments of a pair serve both orders of the options
    shown = forked.start(["show", str(directory(tmp_path)), "--item", "pair0001"], tmp_path).wait()
    assert shown[0] == 0, shown[2]
    assert "causal_agent" in shown[1]
    assert "mechanism" in shown[1]
