"""A real server, `transformers serve` with a tiny model, behind a proxy that misbehaves on demand."""

import json
import re
import signal
import sqlite3
import time
from pathlib import Path

import pytest
from support import forked
from support.faulty_proxy import FaultyProxy, cut, dropped, failing, replying, reset, slow
from support.llm import ask
from support.serving import save_tiny_model, serve

from privlm.config import EndpointLLMConfig, LocalLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.endpoint.backend import EndpointBackend
from privlm.llm.record import CallRecord
from privlm.llm.types import GenerateRequest, Message, Sampling

pytestmark = pytest.mark.medium

PACKAGE = Path(__file__).resolve().parents[2] / "fixtures" / "asking_task"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    pytest.importorskip("fastapi", reason="the extra serving is not installed")
    with serve(model, tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield url


@pytest.fixture
def proxy(server):
    with FaultyProxy(upstream=server) as proxy:
        yield proxy


@pytest.fixture
def backend(proxy, model):
    def make(**changes):
        config = {"base_url": proxy.url, "model": str(model), "api_key_env": None} | changes
        return EndpointBackend(defaults(EndpointLLMConfig, "llm", "endpoint", **config))

    return make


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_server_answers_as_the_same_weights_do_here(backend, model, api):
    from privlm.llm.local.backend import LocalBackend

    texts = ("hi", "What is the capital of France?")
    prompts = [(Message("system", "Be brief."), Message("user", text)) if api == "chat" else text for text in texts]
    requests = [GenerateRequest(prompt, Sampling(max_tokens=12)) for prompt in prompts]
    there = LanguageModel(backend(api=api)).generate(requests)
    here = LanguageModel(LocalBackend.from_files(defaults(LocalLLMConfig, "llm", "local", path=str(model)))).generate(
        requests
    )
    facts = [(a.text, a.status, a.prompt_tokens, a.completion_tokens) for a in there]
    assert facts == [(a.text, a.status, a.prompt_tokens, a.completion_tokens) for a in here]
    assert [fact[1] for fact in facts] == ["length", "length"]


def test_every_passing_fault_leads_to_the_same_answer(backend, proxy):
    expected = LanguageModel(backend()).generate([ask("hi")])[0].text
    faults = [
        dropped,
        reset,
        cut,
        failing(429, Retry_After="0.05"),
        failing(500),
        failing(503),
        replying(b'{"choices": [{"mess'),
        replying(b"<html>busy</html>", Content_Type="text/html"),
    ]
    proxy.next(*faults)
    retry = {"max_attempts": len(faults) + 1, "max_wait": 0.05}
    (answer,) = LanguageModel(backend(retry=retry)).generate([ask("hi")])
    assert (answer.text, answer.attempts) == (expected, len(faults) + 1)
    proxy.next(slow(0.4))
    assert LanguageModel(backend()).generate([ask("hi")])[0].attempts == 1


def test_what_this_server_cannot_do_is_told(backend, proxy):
    with pytest.raises(UsageError, match="returns no logprobs"):
        LanguageModel(backend()).generate([ask("hi", logprobs=True)])
    with pytest.raises(UsageError, match=r"llm.model=another, .*HTTP 400: Server is pinned"):
        LanguageModel(backend(model="another")).generate([ask("hi")])
    without_v1 = LanguageModel(backend(base_url=proxy.url.removesuffix("/v1")))
    with pytest.raises(UsageError, match=r"an address usually ends in /v1 \(HTTP 404"):
        without_v1.generate([ask("hi")])


def test_a_prompt_that_the_server_would_take_without_a_word_is_refused_here(backend, proxy, model):
    checked = backend(context_length=64, tokenizer=str(model))
    with pytest.raises(UsageError, match=r"too long: \d+ tokens and 8 to be generated exceed llm.context_length=64"):
        LanguageModel(checked).generate([ask("a" * 400)])
    assert not proxy.calls


def test_two_models_on_one_record_pay_once_and_agree(backend, proxy, tmp_path):
    answers = []
    for _ in range(2):
        record = CallRecord(tmp_path / "calls.sqlite")
        answers.append([a.text for a in LanguageModel(backend(), record=record).generate([ask("a"), ask("b")])])
        record.close()
    assert answers[0] == answers[1]
    assert len(proxy.calls) == 2


def test_a_run_killed_in_the_middle_ends_with_the_same_table(proxy, model, tmp_path):
    def start(folder):
        folder.mkdir(exist_ok=True)
        words = ["run", "task=asking", "task.num_items=12", f"llm.model={model}", f"llm.base_url={proxy.url}"]
        return forked.start([*words, "llm.api_key_env=null"], folder, packages=PACKAGE)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait()[0] == 0
    assert len(proxy.calls) == 12
    proxy.calls.clear()
    command = start(killed)
    while len(proxy.calls) < 6:
        time.sleep(0.005)
    command.signal(signal.SIGKILL)
    command.wait()
    done = num_stored(killed)
    assert done < 12
    while proxy.busy:  # calls that were under way
        time.sleep(0.005)
    proxy.calls.clear()
    status, _, errors = start(killed).wait()
    assert status == 0, errors
    assert len(proxy.calls) == 12 - done
    assert result(killed)["rows"] == result(whole)["rows"]
    assert re.search(r"llm=endpoint llm.api=chat: \d+ calls, \d+ cached, [\d,]+ tokens, .* calls/s", errors)


def run_directory(folder):
    (directory,) = (folder / "runs" / "asking").iterdir()
    return directory


def result(folder):
    return json.loads((run_directory(folder) / "result.json").read_text())


def num_stored(folder):
    with sqlite3.connect(run_directory(folder) / "llm_calls.sqlite") as database:
        return database.execute("SELECT count(*) FROM calls WHERE status IN ('ok', 'length')").fetchone()[0]
