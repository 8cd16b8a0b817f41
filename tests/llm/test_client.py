import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.llm import ScriptedBackend, ask

from privlm.errors import ServiceError, UsageError
from privlm.llm import Budget, BudgetExhausted, LanguageModel
from privlm.llm.record import CallRecord
from privlm.llm.types import Answer, Sampling, Score, ScoreRequest
from privlm.signals import Interrupted

pytestmark = pytest.mark.torch_free


@pytest.fixture
def record(tmp_path):
    record = CallRecord(tmp_path / "calls.sqlite")
    yield record
    record.close()


@pytest.fixture(params=[1, 4])
def parallel(request):
    return request.param


def texts(answers):
    return [answer.text for answer in answers]


PROMPTS = [ask(word) for word in ("one", "two", "three", "four", "five")]


def test_answers_come_in_the_order_of_the_requests(parallel):
    model = LanguageModel(ScriptedBackend(parallel=parallel))
    assert texts(model.generate(PROMPTS)) == ["ONE", "TWO", "THREE", "FOUR", "FIVE"]
    assert model.usage.calls == 5
    assert model.usage.prompt_tokens == 20


def test_equal_requests_are_asked_once(parallel):
    backend = ScriptedBackend(parallel=parallel)
    told = []
    answers = LanguageModel(backend).generate(
        [ask("a"), ask("b"), ask("a", item="other name")], on_reply=lambda place, reply: told.append(place)
    )
    assert texts(answers) == ["A", "B", "A"]
    assert len(backend.asked) == 2
    assert sorted(told) == [0, 1, 2]


def test_what_the_record_knows_is_not_asked_again_and_nothing_is_loaded(record, parallel):
    LanguageModel(ScriptedBackend(parallel=parallel), record=record).generate(PROMPTS[:3])
    again = ScriptedBackend(parallel=parallel)
    model = LanguageModel(again, record=record)
    answers = model.generate(PROMPTS)
    assert texts(answers) == ["ONE", "TWO", "THREE", "FOUR", "FIVE"]
    assert [answer.cached for answer in answers] == [True, True, True, False, False]
    assert len(again.asked) == 2
    assert (model.usage.calls, model.usage.cached) == (2, 3)
    model.generate(PROMPTS[:3])
    assert again.checks == 1
    untouched = ScriptedBackend()
    LanguageModel(untouched, record=record).generate(PROMPTS)
    assert untouched.checks == 0


def test_a_reply_is_stored_before_it_is_handed_on(record, parallel):
    stored = []

    def look(place, reply):
        with_another = CallRecord(record.path)
        stored.append(with_another.get([row[0] for row in with_another._database.execute("SELECT key FROM calls")]))
        with_another.close()

    LanguageModel(ScriptedBackend(parallel=parallel), record=record).generate([ask("only")], on_reply=look)
    assert [answer.text for answer in stored[0].values()] == ["ONLY"]


def test_cache_off_writes_nothing_and_read_only_reads(record):
    off = LanguageModel(ScriptedBackend(), record=record, cache="off")
    off.generate(PROMPTS[:1])
    backend = ScriptedBackend()
    read = LanguageModel(backend, record=record, cache="read")
    read.generate(PROMPTS[:1])
    read.generate(PROMPTS[:1])
    assert len(backend.asked) == 2


def test_replay_only_names_the_item_that_is_missing(record):
    LanguageModel(ScriptedBackend(), record=record).generate(PROMPTS[:1])
    model = LanguageModel(ScriptedBackend(), record=record, cache="replay_only")
    assert texts(model.generate(PROMPTS[:1])) == ["ONE"]
    with pytest.raises(UsageError, match=r"no answer for 1 of 2 requests, first pair0007"):
        model.generate([*PROMPTS[:1], ask("new", item="pair0007")])


def test_a_missing_capability_is_refused_before_any_call():
    backend = ScriptedBackend(capabilities=["generate"])
    model = LanguageModel(backend, label="llm=endpoint llm.api=chat")
    with pytest.raises(UsageError) as caught:
        model.require("score", by="step filter")
    assert str(caught.value) == (
        "llm=endpoint llm.api=chat cannot score given text (needed by step filter); use a local model or a server with "
        "prompt logprobs"
    )
    with pytest.raises(UsageError, match="log-probabilities"):
        model.generate([ask("a", logprobs=True)])
    assert not backend.asked


@pytest.mark.parametrize(
    ("setting", "doing"), [("num_beams=4", "search with beams"), ("top_k=5", "draw from the k most likely tokens")]
)
def test_sampling_that_the_backend_does_not_know_is_refused_before_any_call(setting, doing):
    backend = ScriptedBackend()
    name, value = setting.split("=")
    requests = [ask("a"), replace(ask("b"), sampling=Sampling(8, **{name: int(value)}))]
    with pytest.raises(UsageError, match=rf"^llm=scripted cannot {doing} \(needed by {setting}\); use a local model$"):
        LanguageModel(backend).generate(requests)
    assert not backend.asked


def test_choose_takes_the_lowest_and_of_equal_ones_the_first():
    table = {"x": Score(3.0, 3), "y": Score(2.0, 1), "z": Score(4.0, 4)}
    model = LanguageModel(ScriptedBackend(lambda request: table[request.continuation]))
    assert model.choose("c", ["x", "y", "z"]).index == 0
    assert model.choose("c", ["y", "z"]).index == 1
    choice = model.choose("c", ["x", "y", "z"], by="sum_nll")
    assert choice.index == 1
    assert [score.sum_nll for score in choice.scores] == [3.0, 2.0, 4.0]


def test_scores_are_kept_too(record):
    request = ScoreRequest("context", "ation")
    assert LanguageModel(ScriptedBackend(), record=record).score([request]) == [Score(5.0, 1)]
    backend = ScriptedBackend()
    assert LanguageModel(backend, record=record).score([request])[0].cached
    assert not backend.asked


def test_cached_calls_cost_one_query_a_batch(record):
    """What keeps the replay of many calls quick; benchmarks/llm_record.py measures it."""
    requests = [ask(f"question {number}") for number in range(100)]
    LanguageModel(ScriptedBackend(parallel=64), record=record).generate(requests)
    model = LanguageModel(ScriptedBackend(), record=record)
    queries: list[str] = []
    record._database.set_trace_callback(queries.append)
    model.generate(requests)
    assert len(queries) == 1
    model.generate(requests[:1])
    assert len(queries) == 2
    assert model.usage.cached == 101


# --- how asking ends ------------------------------------------------------------------------------------------------


def test_a_budget_of_calls_stops_before_the_call_that_would_exceed_it(record, parallel):
    backend = ScriptedBackend(parallel=parallel)
    model = LanguageModel(backend, record=record, budget=Budget(calls=3))
    told = []
    with pytest.raises(BudgetExhausted, match=r"^llm.budget.calls=3 is reached$") as caught:
        model.generate(PROMPTS, on_reply=lambda place, reply: told.append(place))
    assert caught.value.exit_code == 0
    assert len(backend.asked) == len(told) == 3
    raised = LanguageModel(ScriptedBackend(parallel=parallel), record=record, budget=Budget(calls=2))
    assert len(raised.generate(PROMPTS)) == 5


def test_an_estimate_that_was_too_high_gives_its_room_back(parallel):
    """8 tokens may come back of each call and 2 do: 12 are estimated and 6 are spent."""
    backend = ScriptedBackend(parallel=parallel)
    with pytest.raises(BudgetExhausted, match="tokens=30"):
        LanguageModel(backend, budget=Budget(tokens=30)).generate([ask(f"prompt {number}") for number in range(9)])
    assert len(backend.asked) == 4  # 24 spent, and a fifth could bring it to 36


def test_a_budget_that_the_last_call_exceeds_stops_nothing(parallel):
    backend = ScriptedBackend(lambda request: Answer("x", "ok", completion_tokens=1000), parallel=parallel)
    assert LanguageModel(backend, budget=Budget(tokens=12)).generate([ask("only")])[0].text == "x"


def test_dollars_count_by_real_usage(parallel):
    model = LanguageModel(ScriptedBackend(parallel=parallel), price=(1e6, 10e6), budget=Budget(usd=100.0))
    with pytest.raises(BudgetExhausted, match="usd=100"):
        model.generate(PROMPTS)
    assert model.usage.usd == 24.0  # 4 in at 1, 2 out at 10; a second call could cost 84
    assert model.usage.calls == 1


def test_what_earlier_tries_have_spent_counts(record):
    model = LanguageModel(ScriptedBackend(), record=record, payer="run", price=(1.0, 1.0))
    model.generate(PROMPTS[:3])
    spent = record.spent("run")
    assert (spent.calls, spent.prompt_tokens, spent.completion_tokens) == (3, 12, 6)
    assert spent.usd == pytest.approx(18e-6)
    assert record.spent("another").calls == 0


def test_seconds_stop_between_two_calls(parallel):
    backend = ScriptedBackend(lambda request: (time.sleep(0.02), Answer("x", "ok"))[1], parallel=parallel)
    model = LanguageModel(backend, budget=Budget(seconds=0.1))
    with pytest.raises(BudgetExhausted, match=r"seconds=0.1"):
        model.generate([ask(f"prompt {number}") for number in range(100)])
    assert 1 <= len(backend.asked) < 100
    assert model.usage.seconds >= 0.1


def test_a_signal_finishes_the_calls_in_flight(record, parallel):
    flag = SimpleNamespace(signum=0)

    def reply(request):
        flag.signum = signal.SIGINT
        return Answer(request.prompt, "ok")

    model = LanguageModel(ScriptedBackend(reply, parallel=parallel), record=record, stop=lambda: flag.signum)
    with pytest.raises(Interrupted) as caught:
        model.generate([ask(f"prompt {number}") for number in range(50)])
    assert caught.value.exit_code == 130
    stored = LanguageModel(ScriptedBackend(parallel=parallel), record=record)
    stored.generate([ask(f"prompt {number}") for number in range(50)])
    assert stored.usage.cached == len(model.backend.asked) > 0


def test_a_dead_server_ends_the_batch_with_finished_answers_kept(record):
    together = threading.Barrier(4)

    def reply(request):
        if request.prompt in ("p0", "p1", "p2", "p3"):
            together.wait(10)
        if request.prompt == "p0":
            raise ServiceError("http://127.0.0.1:9/v1 does not answer")
        time.sleep(0.05)
        return Answer(request.prompt, "ok")

    backend = ScriptedBackend(reply, parallel=4)
    with pytest.raises(ServiceError, match="does not answer"):
        LanguageModel(backend, record=record).generate([ask(f"p{number}") for number in range(50)])
    again = LanguageModel(ScriptedBackend(), record=record)
    again.generate([ask(f"p{number}") for number in range(50)])
    assert again.usage.cached == len(backend.asked) - 1 >= 3


def test_a_callers_error_does_not_lose_calls_in_flight(record):
    together = threading.Barrier(4)

    def reply(request):
        together.wait(10)
        time.sleep(0.1 if request.prompt != "p0" else 0)
        return Answer(request.prompt, "ok")

    def fail(place, reply):
        raise ValueError("of the caller")

    requests = [ask(f"p{number}") for number in range(4)]
    with pytest.raises(ValueError, match="of the caller"):
        LanguageModel(ScriptedBackend()).generate(requests[:1], on_reply=fail)
    with pytest.raises(ValueError, match="of the caller"):
        LanguageModel(ScriptedBackend(reply, parallel=4), record=record).generate(requests, on_reply=fail)
    assert LanguageModel(ScriptedBackend(), record=record, cache="replay_only").generate(requests)


@pytest.mark.parametrize(
    ("status", "error"), [("server_error", ServiceError), ("timeout", ServiceError), ("client_error", UsageError)]
)
def test_failed_calls_are_told_after_all_others_and_asked_again(record, parallel, status, error):
    def reply(request):
        failed = request.prompt == "two"
        return Answer("", status, detail="HTTP 500") if failed else Answer(request.prompt, "ok")

    model = LanguageModel(ScriptedBackend(reply, parallel=parallel), record=record)
    with pytest.raises(error, match=rf"1 of 5 calls failed \(1 {status}\).*HTTP 500"):
        model.generate(PROMPTS)
    again = ScriptedBackend()
    assert len(LanguageModel(again, record=record).generate(PROMPTS)) == 5
    assert [request.prompt for request in again.asked] == ["two"]


def test_failures_can_be_returned():
    model = LanguageModel(ScriptedBackend(lambda request: Answer("", "malformed")))
    assert [answer.status for answer in model.generate(PROMPTS[:1], failures="return")] == ["malformed"]
