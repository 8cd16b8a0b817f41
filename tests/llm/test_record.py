import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from support.llm import ScriptedBackend, ask

from privlm.errors import PrivLMError, UsageError
from privlm.llm import LanguageModel
from privlm.llm import record as record_module
from privlm.llm.budget import Spent
from privlm.llm.record import CallRecord, CallRow, call_key
from privlm.llm.types import Answer, GenerateRequest, Message, Sampling, Score, ScoreRequest

pytestmark = pytest.mark.torch_free

BASE = GenerateRequest("prompt", Sampling(8))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "calls.sqlite"


def store(record, request, reply, key=None):
    key = key or call_key("b", "m", request)
    record.store([CallRow(key, "b", "m", request, reply, Spent(1))], "run", Spent(1))
    return key


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, prompt="prompt "),
        replace(BASE, prompt=(Message("user", "prompt"),)),
        replace(BASE, prompt=(Message("system", "be brief"), Message("user", "prompt"))),
        replace(BASE, sampling=Sampling(9)),
        replace(BASE, sampling=Sampling(8, temperature=0.7)),
        replace(BASE, sampling=Sampling(8, top_p=0.9)),
        replace(BASE, sampling=Sampling(8, stop=("\n",))),
        replace(BASE, sampling=Sampling(8, seed=1)),
        replace(BASE, sampling=Sampling(8, num_beams=4)),
        replace(BASE, sampling=Sampling(8, top_k=1)),
        replace(BASE, sample_index=1),
        replace(BASE, logprobs=True),
        ScoreRequest("prompt", "x"),
    ],
    ids=str,
)
def test_every_field_of_a_request_is_in_its_key(other):
    assert call_key("b", "m", other) != call_key("b", "m", BASE)


def test_keys_of_records_of_before_are_found_again():
    request = GenerateRequest("p", Sampling(8, 0.7, 0.9, ("x",), 3), 2)
    assert call_key("b", "m", request) == "26de9b457669c0c72338e22799eda6ca5ab5df9d4dbc4f106ae60c9b2ab2ddb9"


def test_key_tells_who_answers_and_not_what_the_caller_calls_it():
    assert len({call_key("b", "m", BASE), call_key("c", "m", BASE), call_key("b", "n", BASE)}) == 3
    assert call_key("b", "m", replace(BASE, item="pair0001")) == call_key("b", "m", BASE)
    assert call_key("b", "m", ScoreRequest("c", "x")) != call_key("b", "m", ScoreRequest("c", "x", border="offsets"))
    assert call_key("b", "m", ScoreRequest("c ", "x")) != call_key("b", "m", ScoreRequest("c", " x"))


def test_replies_come_back_as_they_were(path):
    answer = Answer("tëxt \ud800", "length", "length", 3, 8, True, (-0.5, -1.25), 2, 12.5, 200, None)
    score = Score(1.2345678901234567, 3, True, 40)
    record = CallRecord(path)
    keys = [store(record, BASE, answer), store(record, ScoreRequest("c", "x"), score)]
    record.close()
    assert list(CallRecord(path).get(keys).values()) == [replace(answer, cached=True), replace(score, cached=True)]


@pytest.mark.parametrize("status", ["malformed", "timeout", "rate_limited", "server_error", "client_error", "budget"])
def test_failures_are_kept_for_the_bill_and_not_served(path, status):
    record = CallRecord(path)
    key = store(record, BASE, Answer("", status))
    assert record.get([key]) == {}
    assert record.claim([key]).granted == [key]
    store(record, BASE, Answer("at last", "ok"))
    assert record.get([key])[key].text == "at last"
    assert record.spent("run").calls == 2


def test_a_live_lease_makes_others_wait_and_be_served(path):
    first, second = CallRecord(path), CallRecord(path)
    key = call_key("b", "m", BASE)
    assert first.claim([key]).granted == [key]
    assert second.claim([key]).busy == [key]
    store(first, BASE, Answer("paid once", "ok"))
    assert second.claim([key]).answered[key].text == "paid once"


def test_a_released_or_expired_lease_is_free(path, monkeypatch):
    first, second = CallRecord(path, lease_seconds=100.0), CallRecord(path, lease_seconds=100.0)
    first.claim(["k"])
    first.release()
    assert second.claim(["k"]).granted == ["k"]
    now = time.time()
    monkeypatch.setattr(record_module.time, "time", lambda: now + 104.0)
    assert first.claim(["k"]).busy == ["k"]
    second.renew()
    monkeypatch.setattr(record_module.time, "time", lambda: now + 150.0)
    assert first.claim(["k"]).busy == ["k"]
    monkeypatch.setattr(record_module.time, "time", lambda: now + 250.0)
    assert first.claim(["k"]).granted == ["k"]


def test_a_clock_that_went_backwards_blocks_nobody_for_long(path, monkeypatch):
    first, second = CallRecord(path, lease_seconds=10.0), CallRecord(path, lease_seconds=10.0)
    first.claim(["k"])
    now, steady = time.time(), time.monotonic()
    monkeypatch.setattr(record_module.time, "time", lambda: now - 86400.0)
    assert second.claim(["k"]).busy == ["k"]
    monkeypatch.setattr(record_module.time, "monotonic", lambda: steady + 16.0)
    assert second.claim(["k"]).granted == ["k"]


def test_the_lease_of_a_killed_process_is_free_at_once(path):
    code = (
        "import os, sys; from pathlib import Path; from privlm.llm.record import CallRecord;"
        "assert CallRecord(Path(sys.argv[1])).claim(['k']).granted; os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert CallRecord(path).claim(["k"]).granted == ["k"]


def test_two_models_on_one_record_pay_once(path):
    """Two owners, each with its own connection, ask the same 30 prompts at the same time."""
    backends = [ScriptedBackend(lambda request: (time.sleep(0.002), Answer(request.prompt, "ok"))[1], parallel=4)
                for _ in range(2)]  # fmt: skip
    requests = [ask(f"p{number}") for number in range(30)]
    answers = []

    def work(backend):
        record = CallRecord(path)
        answers.append(LanguageModel(backend, record=record).generate(requests))
        record.close()

    threads = [threading.Thread(target=work, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(backend.asked) for backend in backends) == 30
    assert [answer.text for answer in answers[0]] == [answer.text for answer in answers[1]]


# --- faults of the file ---------------------------------------------------------------------------------------------


def test_a_damaged_file_is_named(path):
    path.write_bytes(b"no database at all, but long enough to be looked at " * 40)
    with pytest.raises(UsageError, match=r"calls.sqlite is damaged or no call record .*move it away"):
        CallRecord(path)


def test_damage_in_the_middle_is_named(path):
    record = CallRecord(path)
    keys = [store(record, replace(BASE, prompt=f"{number} " * 400), Answer("x" * 800, "ok")) for number in range(50)]
    record.close()
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 60000)
    with pytest.raises(UsageError, match="damaged"):
        CallRecord(path).get(keys)


def test_other_databases_and_newer_schemas_are_refused(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(UsageError, match="is no call record"):
        CallRecord(path)
    newer = path.with_name("newer.sqlite")
    CallRecord(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(UsageError, match=r"newer PrivLM \(schema 99\)"):
        CallRecord(newer)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the call record .*set llm.cache_dir"):
        CallRecord(tmp_path / "file" / "calls.sqlite")


def test_a_missing_record_is_named_where_it_is_needed(path):
    with pytest.raises(UsageError, match=r"no call record .*llm.cache=write makes it"):
        CallRecord(path, read_only=True)


def test_no_answer_is_handed_on_that_the_full_disk_did_not_take(path):
    record = CallRecord(path)
    (pages,) = record._database.execute("PRAGMA page_count").fetchone()
    record._database.execute(f"PRAGMA max_page_count={pages + 3}")  # SQLite's own full disk
    told = []
    model = LanguageModel(ScriptedBackend(lambda request: Answer("x" * 3000, "ok")), record=record)
    with pytest.raises(PrivLMError, match=r"cannot write .*calls.sqlite: the disk is full") as caught:
        model.generate([ask(f"p{number}") for number in range(20)], on_reply=lambda place, reply: told.append(place))
    assert caught.value.exit_code == 1
    record.close()
    again = CallRecord(path)
    keys = [call_key("scripted", "scripted", ask(f"p{number}")) for number in range(20)]
    assert len(again.get(keys)) == len(told) < 20


def test_a_network_file_system_is_refused_for_a_shared_record(path, monkeypatch):
    monkeypatch.setattr(record_module, "_file_system", lambda folder: "nfs4")
    with pytest.raises(UsageError, match="network file system"):
        CallRecord(path, shared=True)
    own = CallRecord(path)  # the lock of the run directory keeps others out
    (mode,) = own._database.execute("PRAGMA journal_mode").fetchone()
    assert mode == "truncate"


def test_the_file_system_of_a_folder_is_found(tmp_path):
    assert record_module._file_system(tmp_path) not in ("unknown", *record_module.NETWORK_FILE_SYSTEMS)
    assert record_module._file_system(record_module.Path("/proc/self")) == "proc"


def test_many_processes_may_make_the_same_record(path):
    code = (
        "import sys; from pathlib import Path; from privlm.llm.record import CallRecord; path = Path(sys.argv[1]);"
        "records = [CallRecord(path.with_name(f'{n}.sqlite')) for n in range(20)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_prompts_can_be_left_out(path):
    record = CallRecord(path)
    model = LanguageModel(ScriptedBackend(), record=record, keep_prompts=False)
    model.generate([ask("a private matter")])
    record.close()
    assert b"a private matter" not in path.read_bytes()
    assert LanguageModel(ScriptedBackend(), record=CallRecord(path)).generate([ask("a private matter")])[0].cached


def test_replies_are_durable(path):
    record = CallRecord(path)
    assert record._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert record._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert os.path.exists(f"{path}-wal")
