"""Whole runs against a server on loopback that counts what it is asked: killed, interrupted, out of budget, alone."""

import json
import re
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from support import forked
from support.faulty_proxy import FaultyProxy, failing, hanging

pytestmark = pytest.mark.medium

PACKAGE = Path(__file__).resolve().parents[1] / "fixtures" / "asking_task"
KEY = "sk-canary-77aa1f"
NUM = 40


@pytest.fixture
def server():
    with FaultyProxy() as server:
        yield server


def start(url, folder, *words):
    """`privlm run task=asking` with 40 questions, 4 at once."""
    return forked.start(
        [
            *("run", "task=asking", f"task.num_items={NUM}", "llm.model=m", f"llm.base_url={url}"),
            *("llm.api_key_env=ASKING_KEY", "llm.retry.max_attempts=2", "llm.retry.max_wait=0.1", *words),
        ],
        folder,
        packages=PACKAGE,
        ASKING_KEY=KEY,
        COLUMNS="120",
    )


def run(url, folder, *words, status=0):
    code, output, errors = start(url, folder, *words).wait()
    assert code == status, errors
    assert "Traceback" not in errors
    return output, errors


def run_directory(folder):
    (directory,) = (folder / "runs" / "asking").iterdir()
    return directory


def rows(folder):
    return json.loads((run_directory(folder) / "result.json").read_text())["rows"]


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_run_killed_at_any_point_asks_exactly_what_is_missing(server, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(server.url, whole)
    assert sorted(server.prompts()) == sorted(f"question {number}" for number in range(NUM))
    server.calls.clear()
    server.next(*[None] * 17)
    server.always(hanging)
    command = start(server.url, killed)
    wait_for(lambda: len(server.calls) == 21)  # 17 answered, 4 under way
    wait_for(lambda: stored(killed) == 17)
    command.signal(signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL
    server.calls.clear()
    server.always(None)
    run(server.url, killed)
    assert len(server.calls) == NUM - 17
    assert rows(killed) == rows(whole)
    for path in tmp_path.rglob("*"):  # the key is nowhere
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def stored(folder):
    path = run_directory(folder) / "llm_calls.sqlite"
    with sqlite3.connect(path) as database:
        return database.execute("SELECT count(*) FROM calls WHERE status='ok'").fetchone()[0]


def test_ctrl_c_finishes_the_calls_under_way(server, tmp_path):
    server.delay = 0.3
    command = start(server.url, tmp_path)
    wait_for(lambda: len(server.calls) >= 6)
    command.signal(signal.SIGINT)
    status, _, errors = command.wait()
    assert status == 130
    assert "Traceback" not in errors
    first = len(server.calls)
    assert stored(tmp_path) == server.answered == first < NUM
    server.delay = 0.0
    run(server.url, tmp_path)
    assert len(server.calls) == NUM


def test_a_second_ctrl_c_stops_now(server, tmp_path):
    server.always(hanging)
    command = start(server.url, tmp_path)
    wait_for(lambda: len(server.calls) == 4)
    command.signal(signal.SIGINT)
    time.sleep(0.5)
    assert command.process.is_alive()
    command.signal(signal.SIGINT)
    assert command.wait(10.0)[0] == 130


def test_two_processes_on_one_record_pay_once(server, tmp_path):
    server.delay = 0.02
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    commands = [start(server.url, folder, f"llm.cache_dir={tmp_path / 'shared'}") for folder in folders]
    assert [command.wait()[0] for command in commands] == [0, 0]
    assert len(server.calls) == NUM
    assert rows(folders[0]) == rows(folders[1])


def test_an_exhausted_budget_is_a_clean_stop_that_the_same_command_goes_on_from(server, tmp_path):
    output, _ = run(server.url, tmp_path, "llm.budget.calls=15")
    assert f"budget_exhausted: 15/{NUM} items done" in output
    assert re.search(r"answer_length\s+1\d\.?\d*\s.*n=15", output)
    assert len(server.calls) == 15
    run(server.url, tmp_path, "llm.budget.calls=15")  # what earlier tries have spent counts
    assert len(server.calls) == 15
    output, _ = run(server.url, tmp_path, "llm.budget.calls=100", "--json")
    assert json.loads(output)["status"] == "done"
    assert len(server.calls) == NUM


def test_nobody_at_the_address_ends_with_one_line(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    _, errors = run(url, tmp_path, status=3)
    assert f"privlm: {url} does not answer (connection refused)" in errors.splitlines()[-1]


def test_a_server_that_goes_down_in_the_middle_costs_nothing_that_was_answered(server, tmp_path):
    server.next(*[None] * 11)
    server.always(failing(503))
    _, errors = run(server.url, tmp_path, status=3)
    assert "does not answer (HTTP 503: no; 2 attempts); what was answered is kept" in errors.splitlines()[-1]
    assert stored(tmp_path) == 11
    server.calls.clear()
    server.always(None)
    run(server.url, tmp_path)
    assert len(server.calls) == NUM - 11
