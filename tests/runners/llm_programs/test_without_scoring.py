"""Rows that only generate, asked of a server: an item that gets no answer, and the key, which is written nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import forked
from support.faulty_proxy import FaultyProxy, answer, failing

pytestmark = pytest.mark.medium

KEY = "sk-canary-0b5e77"


def run(server: FaultyProxy, folder: Path) -> tuple[int, str]:
    command = forked.start(
        [
            *("run", "task=llm_programs", "task.rows=[no_cot,golden]", "task.reasks=0", "task.num_questions=60"),
            *("llm=endpoint", "llm.model=m", f"llm.base_url={server.url}", "llm.api_key_env=PROGRAMS_KEY"),
            *("llm.retry.max_attempts=2", "llm.retry.max_wait=0.1"),
        ],
        folder,
        PROGRAMS_KEY=KEY,
        COLUMNS="160",
    )
    status, output, errors = command.wait()
    assert "Traceback" not in errors
    return status, output + errors


def test_an_item_without_answer_is_asked_again_alone_and_no_file_holds_the_key(tmp_path: Path) -> None:
    questions = json.loads((Path(__file__).parents[3] / "runners/llm_programs/embedded/train.json").read_text())
    refused = questions[7]["question"]

    def refuse_one(handler: Any, body: dict[str, Any]) -> None:
        is_it = body["messages"][-1]["content"].endswith(f"Question: {refused}\nAnswer:")
        failing(500)(handler, body) if is_it else handler.reply(200, answer(body))

    with FaultyProxy() as server:
        server.always(refuse_one)
        status, said = run(server, tmp_path)
        assert status == 3, said
        assert "no_cot: 1 of 60 items got no answer (step 'no_cot': server_error" in said
        (directory,) = (tmp_path / "runs" / "llm_programs").iterdir()
        assert len((directory / "stages" / "no_cot" / "no_cot.jsonl").read_text().splitlines()) == 59
        server.calls.clear()
        server.always(None)
        status, said = run(server, tmp_path)
        assert status == 0, said
        prompts = server.prompts()
        assert len(prompts) == 1 + 60
        assert refused in prompts[0]
        assert {key for key in server.keys if key} == {f"Bearer {KEY}"}
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not holders
