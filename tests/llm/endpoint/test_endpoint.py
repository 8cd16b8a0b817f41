"""Every fault of a server has its status or its error, against a server on loopback that misbehaves on demand."""

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.faulty_proxy import (
    FaultyProxy,
    changed,
    cut,
    dropped,
    failing,
    hanging,
    replying,
    reset,
    slow,
)
from support.faulty_proxy import (
    answer as answer_of,
)
from support.llm import ask

from privlm.config import EndpointLLMConfig, defaults
from privlm.errors import ServiceError, UsageError
from privlm.llm import LanguageModel
from privlm.llm.endpoint.backend import EndpointBackend
from privlm.llm.record import CallRecord
from privlm.llm.types import GenerateRequest, Message, Sampling, ScoreRequest

KEY = "sk-canary-5f2b"
PROMPT = "What is in the box?"
FAST = {"retry": {"max_attempts": 3, "max_wait": 0.05}}


def timeout(fault):
    """Seconds: short only where nothing comes."""
    return {"connect": 10.0, "read": 0.5 if fault is hanging else 30.0}


@pytest.fixture
def server():
    with FaultyProxy() as server:
        yield server


@pytest.fixture
def backend(server, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(**changes):
        config = {"base_url": server.url, "model": "m", "api_key_env": "TEST_KEY"} | FAST | changes
        return EndpointBackend(defaults(EndpointLLMConfig, "llm", "endpoint", **config))

    return make


def one(backend, request=ask(PROMPT)):  # noqa: B008 (a frozen value)
    ((_, reply),) = backend.ask([request])
    return reply


def test_chat_sends_what_was_asked_and_reads_the_answer(server, backend):
    request = GenerateRequest(
        (Message("system", "be brief"), Message("user", PROMPT)),
        Sampling(16, temperature=0.7, top_p=0.9, stop=("\n",), seed=5),
        sample_index=2,
    )
    answer = one(backend(), request)
    assert server.calls == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}],
            "max_tokens": 16,
            "temperature": 0.7,
            "top_p": 0.9,
            "stop": ["\n"],
            "seed": 7,
        }
    ]
    assert server.keys == [f"Bearer {KEY}"]
    assert (answer.text, answer.status, answer.prompt_tokens, answer.completion_tokens) == (PROMPT.upper(), "ok", 4, 2)
    assert not answer.estimated
    assert answer.latency_ms > 0


def test_completions_sends_the_text(server, backend):
    assert one(backend(api="completions")).text == PROMPT.upper()
    assert server.calls[0] == {"model": "m", "prompt": PROMPT, "max_tokens": 8, "temperature": 0.0}
    with pytest.raises(UsageError, match="takes no messages"):
        one(backend(api="completions"), GenerateRequest((Message("user", "x"),), Sampling(8)))


@pytest.mark.parametrize("sampling", [Sampling(8, num_beams=4), Sampling(8, temperature=1.0, top_k=40)])
def test_what_the_protocol_has_no_field_for_is_refused_before_any_call(server, backend, sampling):
    with pytest.raises(UsageError, match=r"num_beams=4|top_k=40"):
        LanguageModel(backend()).generate([GenerateRequest(PROMPT, sampling)])
    assert not server.calls


def test_no_key_is_sent_where_none_is_needed(server, backend):
    one(backend(api_key_env=None))
    assert server.keys == [None]


def test_a_reply_that_repeats_the_key_comes_without_it(backend, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "CANARY-5F2B")
    assert one(backend(), ask("what is canary-5f2b?")).text == "WHAT IS ***?"  # the server repeats in capitals


def test_a_missing_key_is_named_before_any_call(server, backend, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "")
    with pytest.raises(UsageError, match=r"llm.api_key_env: the environment variable TEST_KEY is not set"):
        backend().check_ready()
    assert not server.calls


# --- answers that are not plain text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        (changed(finish_reason="length"), "length", PROMPT.upper()),
        (changed(finish_reason="content_filter", message={"content": ""}), "refused", ""),
        (changed(message={"content": None, "refusal": "I cannot."}), "refused", "I cannot."),
        (changed(message={"content": None}), "empty", ""),
        (changed(message={"content": ""}), "empty", ""),
        (changed(message={"content": None, "tool_calls": [{"id": "1"}]}, finish_reason="tool_calls"), "empty", ""),
        (
            changed(message={"content": [{"type": "text", "text": "so "}, {"type": "text", "text": "it is"}]}),
            "ok",
            "so it is",
        ),
        (
            changed(message={"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}]}),
            "ok",
            "yes",
        ),
        (changed(message={"content": ["so ", "it is"]}), "ok", "so it is"),
        (changed(message={"content": []}), "empty", ""),
        (changed(message={"content": [{"type": "refusal", "refusal": "I cannot."}]}), "refused", "I cannot."),
        (changed(message={"tool_calls": [{"id": "1"}]}), "empty", ""),
        (changed(message={"content": None, "reasoning_content": "hm"}, finish_reason="length"), "length", ""),
        (replying({"choices": []}), "empty", ""),
        (failing(400, "filtered", code="content_filter"), "refused", ""),
    ],
)
def test_an_answer_without_plain_text_has_its_status_and_is_not_asked_again(server, backend, fault, status, text):
    server.next(fault)
    answer = one(backend())
    assert (answer.status, answer.text, answer.attempts) == (status, text, 1)
    assert len(server.calls) == 1


def test_missing_usage_is_estimated_and_says_so(server, backend):
    server.next(changed(usage=None))
    answer = one(backend())
    assert answer.estimated
    assert answer.prompt_tokens == 6  # 19 characters
    assert answer.completion_tokens == 5


def test_logprobs_of_both_schemas_are_read_and_their_absence_is_told(server, backend):
    chat, legacy = {"content": [{"logprob": -0.5}, {"logprob": -1}]}, {"token_logprobs": [-0.5, -1.0]}
    server.next(changed(logprobs=chat), changed(logprobs=legacy), None)
    assert one(backend(), ask(PROMPT, logprobs=True)).logprobs == (-0.5, -1.0)
    assert one(backend(api="completions"), ask(PROMPT, logprobs=True)).logprobs == (-0.5, -1.0)
    assert [call["logprobs"] for call in server.calls] == [True, 1]
    with pytest.raises(UsageError, match="returns no logprobs for m"):
        one(backend(), ask(PROMPT, logprobs=True))


# --- attempts -------------------------------------------------------------------------------------------------------

PASSING = {
    "dropped": dropped,
    "reset": reset,
    "cut": cut,
    "half JSON": replying(b'{"choices": [{"mess'),
    "page of a proxy": replying(b"<html>busy</html>", Content_Type="text/html"),
    "error with 200": replying({"error": {"message": "overloaded"}}),
    "no object": replying([1, 2]),
    "choices of a kind of its own": replying({"choices": "none"}),
    "an error beside an answer": replying({"error": {"code": 1}, "choices": [{"message": {"content": "x"}}]}),
    "an error in the choice": changed(error={"message": "upstream"}),
    "an error as the end": changed(finish_reason="error"),
    "a choice that is none": replying({"choices": ["x"]}),
    "a choice of nothing": replying({"choices": [{}]}),
    "no message": changed(message=None),
    "a message of text": changed(message="x"),
    "a message without content": changed(message={"role": "assistant"}),
    "content that is a number": changed(message={"content": 5}),
    "content that is an object": changed(message={"content": {"text": "x"}}),
    "a part that is a number": changed(message={"content": [{"type": "text", "text": 5}]}),
    "a part of an unknown kind": changed(message={"content": [{"type": "hologram"}]}),
    "the pieces of a stream": replying({"choices": [{"delta": {"content": "x"}}]}),
    "wrong content type and nothing": replying(b"", Content_Type="image/png"),
    "hanging": hanging,
    "408": failing(408),
    "409": failing(409),
    "424": failing(424),
    "425": failing(425),
    "429": failing(429),
    "429 with seconds": failing(429, Retry_After="0.02"),
    "429 with a past date": failing(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with nonsense": failing(429, Retry_After="soon"),
    "500": failing(500),
    "502 with a page": replying(b"<html>bad gateway</html>", 502, Content_Type="text/html"),
    "503": failing(503),
    "504": failing(504),
    "507": failing(507),
    "520": failing(520),
    "529": failing(529),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_tried_again(server, backend, fault):
    server.next(fault)
    answer = one(backend(timeout=timeout(fault)))
    assert (answer.status, answer.text, answer.attempts) == ("ok", PROMPT.upper(), 2)
    assert len(server.calls) == 2


def test_three_failures_then_an_answer(server, backend):
    server.next(*[failing(500)] * 3)
    answer = one(backend(retry={"max_attempts": 4, "max_wait": 0.05}))
    assert (answer.status, answer.attempts) == ("ok", 4)


LASTING = {
    "500": (failing(500), "server_error", "HTTP 500: no"),
    "408": (failing(408), "timeout", "HTTP 408: no"),
    "hanging": (hanging, "timeout", "no answer within llm.timeout.read"),
    "page of a proxy": (PASSING["page of a proxy"], "malformed", "the reply is not JSON (text/html)"),
    "error with 200": (PASSING["error with 200"], "malformed", "overloaded"),
    "half JSON": (PASSING["half JSON"], "malformed", "the reply is not JSON (application/json)"),
    "too long": (failing(400, "maximum context length is 512 tokens"), "client_error",
                 "HTTP 400: maximum context length is 512 tokens"),
    "413": (replying(b"", 413), "client_error", "HTTP 413"),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "status", "detail"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault_of_a_request_is_its_status(server, backend, fault, status, detail):
    server.always(fault)
    answer = one(backend(timeout=timeout(fault)))
    assert (answer.status, answer.text, answer.detail) == (status, "", detail)
    assert len(server.calls) == answer.attempts == (1 if status == "client_error" else 3)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (failing(503), "server_error"),
        (failing(529), "server_error"),
        (failing(429), "rate_limited"),
        (dropped, "server_error"),
        (cut, "server_error"),
    ],
)
def test_a_lasting_fault_of_the_server_ends_asking(server, backend, fault, status):
    server.always(fault)
    with pytest.raises(ServiceError, match=r"does not answer .*3 attempts.*the same command goes on") as caught:
        one(backend())
    assert caught.value.answer.status == status
    assert len(server.calls) == 3


def test_requests_that_fail_one_after_the_other_end_asking(server, backend):
    server.always(failing(500))
    failing_backend = backend()
    assert [one(failing_backend).status for _ in range(2)] == ["server_error"] * 2
    with pytest.raises(ServiceError, match="has failed 3 requests in a row"):
        one(failing_backend)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (failing(401), r"llm.api_key_env: .* refuses the key in TEST_KEY \(HTTP 401: no\)"),
        (failing(403), r"llm.api_key_env: .* refuses the key in TEST_KEY \(HTTP 403: no\)"),
        (failing(404, "no model m"), r"llm.model=m, .*usually ends in /v1 \(HTTP 404: no model m\)"),
        (failing(400, "served is tiny"), r"llm.model=m, .*the request is refused \(HTTP 400: served is tiny\)"),
        (failing(422), r"the request is refused \(HTTP 422: no\)"),
        (failing(501), r"the request is refused \(HTTP 501: no\)"),
        (failing(505), r"the request is refused \(HTTP 505: no\)"),
    ],
)
def test_a_refusal_is_an_error_at_once(server, backend, fault, message):
    server.always(fault)
    with pytest.raises(UsageError, match=message):
        one(backend())
    assert len(server.calls) == 1


def test_no_message_holds_the_key_or_the_prompt(server, backend):
    server.next(failing(401, f"bad key {KEY}"), failing(400, f"cannot read {PROMPT!r}"))
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            one(backend())
        assert KEY not in str(caught.value)
        assert PROMPT not in str(caught.value)


def test_retry_after_is_obeyed_and_lowers_concurrency(server, backend):
    patient = backend(concurrency=8, retry={"max_attempts": 3, "max_wait": 5.0})
    server.next(failing(429, Retry_After="0.4"))
    began = time.monotonic()
    assert one(patient).status == "ok"
    assert time.monotonic() - began >= 0.4
    assert patient._limiter.allowed == pytest.approx(4.25)  # halved, and raised by a share


@pytest.mark.parametrize(
    "hours",
    ["36000", format_datetime(datetime.now(UTC) + timedelta(hours=10), usegmt=True)],
    ids=["seconds", "date"],  # the workers of pytest-xdist compare names
)
def test_a_long_retry_after_ends_asking_with_a_sentence(server, backend, hours):
    server.next(failing(429, Retry_After=hours))
    with pytest.raises(ServiceError, match=r"asks to wait 3\d{4} s, longer than llm.retry.max_wait=0.05"):
        one(backend())
    assert len(server.calls) == 1


def test_a_slow_body_is_waited_for(server, backend):
    server.next(slow(2.0, pieces=20))  # each well within the read timeout
    assert one(backend(timeout={"connect": 10.0, "read": 1.5})).attempts == 1


OTHER = {"model": "other", "choices": [{"message": {"content": "x"}}]}


def test_another_model_that_answers_is_told(server, backend, caplog):
    server.next(None, replying(OTHER))
    model = LanguageModel(backend(concurrency=1))
    model.generate([ask("p1"), ask("p2")])
    assert "answers as other now, before as m" in caplog.text
    assert model.answered_by == ("m", "other")


def test_another_model_is_told_after_a_new_start_too(server, backend, caplog, tmp_path):
    for prompts, fault in ((["p1"], None), (["p1", "p2"], replying(OTHER))):
        server.next(fault)
        record = CallRecord(tmp_path / "calls.sqlite")
        model = LanguageModel(backend(concurrency=1), record=record)
        model.generate([ask(prompt) for prompt in prompts])
        record.close()
    assert len(server.calls) == 2
    assert "answers as other now, before as m" in caplog.text


def test_reasoning_without_an_answer_is_said_once(server, backend, caplog):
    thinking = changed(message={"content": "", "reasoning": "hm"}, finish_reason="length")
    server.next(thinking, thinking)
    thinker = backend()
    assert [one(thinker).status for _ in range(2)] == ["length", "length"]
    assert caplog.text.count("reasoned and not come to an answer") == 1
    assert "raise max_tokens" in caplog.text


# --- redirects ------------------------------------------------------------------------------------------------------


def redirecting(status, location):
    return replying(b"", status, Location=location)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_origin_is_followed_with_the_question(server, backend, status):
    server.next(redirecting(status, "/v2/chat/completions"))
    assert one(backend()).text == PROMPT.upper()
    assert server.calls[0] == server.calls[1]
    assert server.keys == [f"Bearer {KEY}"] * 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "place", ["http://localhost:{port}/v1", "https://127.0.0.1:{port}/v1", "//127.0.0.1:{other}/v1"]
)
def test_a_redirect_to_another_origin_is_refused_and_nothing_is_sent_there(server, backend, status, place):
    with FaultyProxy() as elsewhere:
        location = place.format(port=server.port, other=elsewhere.port)
        server.always(redirecting(status, location))
        with pytest.raises(UsageError, match=rf"redirects to .*HTTP {status}.*not followed"):
            one(backend())
        assert not elsewhere.calls
    assert len(server.calls) == 1


def test_a_redirect_that_loses_the_question_or_goes_in_a_circle_is_refused(server, backend):
    server.next(redirecting(302, "/v2/chat/completions"))
    with pytest.raises(UsageError, match=r"redirects questions to /v2/chat/completions"):
        one(backend())
    server.always(redirecting(307, "/v1/chat/completions"))
    with pytest.raises(UsageError, match="redirects in a circle"):
        one(backend())
    server.always(redirecting(307, ""))
    with pytest.raises(UsageError, match="not followed"):
        one(backend())


# --- nobody there ---------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}/v1", "connection refused"),
        ("http://no-such-host.invalid/v1", "unknown host"),
        ("https://127.0.0.1:{server}/v1", "TLS: "),
    ],
)
def test_nobody_at_the_address_is_told(server, backend, address, reason):
    url = address.format(port=free_port(), server=server.port)
    with pytest.raises(ServiceError, match=rf"does not answer \({reason}.*start the server, or correct llm.base_url"):
        backend(base_url=url).check_ready()
    assert not server.calls


def test_health_costs_no_call_and_a_loading_server_is_waited_for(server, backend, monkeypatch):
    from support import faulty_proxy

    statuses = iter([503, 503, 404])
    monkeypatch.setattr(faulty_proxy._Handler, "do_GET", lambda handler: handler.reply(next(statuses), {}))
    backend().check_ready()
    assert next(statuses, None) is None
    assert not server.calls


# --- scores and lengths ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Words, with a token before the text and one after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "</s>", "[UNK]", "the", "box", "is", "red", "blue"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


BOX = ScoreRequest("the box is", " red blue")


def test_echoed_scores_of_a_tokenised_prompt(server, backend, tokenizer):
    logprobs = {"token_logprobs": [None, -1.0, -1.0, -1.0, -0.25, -0.5]}
    server.next(changed(logprobs=logprobs))
    score = one(backend(api="completions", score="echo", tokenizer=tokenizer), BOX)
    assert server.calls[0]["prompt"] == [0, 3, 4, 5, 6, 7]  # one token before the text, none between or after
    assert (server.calls[0]["echo"], server.calls[0]["max_tokens"]) == (True, 0)
    assert (score.sum_nll, score.num_tokens, score.context_tokens) == (0.75, 2, 4)


def test_echoed_scores_of_a_text_begin_at_the_border(server, backend):
    logprobs = {"token_logprobs": [None, -1.0, -0.25, -0.5], "text_offset": [0, 3, 10, 14]}
    server.next(changed(logprobs=logprobs))
    score = one(backend(api="completions", score="echo"), ScoreRequest(BOX.context, BOX.continuation, "offsets"))
    assert server.calls[0]["prompt"] == "the box is red blue"
    assert (score.sum_nll, score.num_tokens) == (0.75, 2)


def test_prompt_logprobs_of_a_text_begin_at_the_border(server, backend):
    texts = ["the", " box", " is", " red", " blue"]
    entries = [None, *({str(n): {"logprob": -n / 4, "decoded_token": text}} for n, text in enumerate(texts))]
    server.next(changed(prompt_logprobs=entries), changed(prompt_logprobs=entries[1:]))
    scoring = backend(api="completions", score="vllm_prompt_logprobs")
    request = ScoreRequest(BOX.context, BOX.continuation, "offsets")
    score = one(scoring, request)
    assert (server.calls[0]["prompt_logprobs"], server.calls[0]["max_tokens"]) == (0, 1)
    assert (score.sum_nll, score.num_tokens) == (1.75, 2)
    with pytest.raises(UsageError, match="border of the continuation cannot be found"):
        one(scoring, ScoreRequest("another", " text", "offsets"))


# Sent: <s> the box is red blue, of which red and blue are scored.
ECHOED = [None, -1.0, -1.0, -1.0, -0.25, -0.5]
WORDS = ["<s>", "the", " box", " is", " red", " blue"]
NUMBERED = [f"token_id:{number}" for number in (0, 3, 4, 5, 6, 7)]
STARTS = [0, 0, 3, 7, 10, 14]


def echo(values, tokens=None, starts=None, **more):
    return changed(logprobs={"token_logprobs": values, "tokens": tokens, "text_offset": starts}, **more)


def entry(number, logprob, **others):
    return {**{key: {"logprob": value} for key, value in others.items()}, str(number): {"logprob": logprob}}


PROMPT_LOGPROBS = [None, entry(3, -1.0), entry(4, -1.0), entry(5, -1.0), entry(6, -0.25), entry(7, -0.5)]
SENT_AND_SCORED = {
    "echo": ("echo", echo(ECHOED)),
    "echo with its tokens": ("echo", echo(ECHOED, WORDS)),
    "echo with the numbers of its tokens": ("echo", echo(ECHOED, NUMBERED)),
    "echo of a first token": ("echo", echo([-3.0, *ECHOED[1:]], WORDS)),
    "echo that exceeds 0 by rounding": ("echo", echo([None, -1.0, -1.0, -1.0, 1e-6, -0.75])),
    "prompt logprobs": ("vllm_prompt_logprobs", changed(prompt_logprobs=PROMPT_LOGPROBS)),
    "prompt logprobs with likelier tokens before": (
        "vllm_prompt_logprobs",
        changed(prompt_logprobs=[*PROMPT_LOGPROBS[:4], entry(6, -0.25, **{"9": -0.1}), entry(7, -0.5, **{"8": -0.2})]),
    ),
}


@pytest.mark.parametrize(("kind", "reply"), SENT_AND_SCORED.values(), ids=SENT_AND_SCORED)
def test_what_was_sent_is_what_is_scored(server, backend, tokenizer, kind, reply):
    server.next(reply)
    score = one(backend(api="completions", score=kind, tokenizer=tokenizer), BOX)
    assert (score.sum_nll, score.num_tokens, score.context_tokens) == (0.75, 2, 4)
    assert score.answered_by == "m"


NOT_SCORED = {
    "echo and a generated token": ("echo", echo([*ECHOED, -9.0])),
    "a token less": ("echo", echo(ECHOED[1:])),
    "a token put before": ("echo", echo([None, *ECHOED])),
    "echo ignored, as many generated": ("echo", echo([-0.1] * 6)),
    "echo ignored, as many generated, with their texts": ("echo", echo([-0.1] * 6, list("abcdef"))),
    "other tokens": ("echo", echo(ECHOED, [*WORDS[:5], " green"])),
    "other numbers of tokens": ("echo", echo(ECHOED, [*NUMBERED[:5], "token_id:9"])),
    "fewer tokens than scores": ("echo", echo(ECHOED, WORDS[:5])),
    "NaN": ("echo", echo([*ECHOED[:5], float("nan")])),
    "infinite": ("echo", echo([*ECHOED[:5], float("-inf")])),
    "above 0": ("echo", echo([*ECHOED[:5], 0.5])),
    "text": ("echo", echo([*ECHOED[:5], "-0.5"])),
    "true": ("echo", echo([*ECHOED[:5], True])),
    "none": ("echo", echo([*ECHOED[:5], None])),
    "no list": ("echo", echo({"0": -1.0})),
    "an error beside them": ("echo", echo(ECHOED, error={"message": "overloaded"})),
    "another token's": ("vllm_prompt_logprobs", changed(prompt_logprobs=[*PROMPT_LOGPROBS[:5], entry(9, -0.1)])),
    "a prompt token more": ("vllm_prompt_logprobs", changed(prompt_logprobs=[None, *PROMPT_LOGPROBS])),
    "a prompt token less": ("vllm_prompt_logprobs", changed(prompt_logprobs=PROMPT_LOGPROBS[1:])),
    "a NaN of the prompt": (
        "vllm_prompt_logprobs",
        changed(prompt_logprobs=[*PROMPT_LOGPROBS[:5], entry(7, float("nan"))]),
    ),
    "above 0 of the prompt": ("vllm_prompt_logprobs", changed(prompt_logprobs=[*PROMPT_LOGPROBS[:5], entry(7, 1.2)])),
    "no entry": ("vllm_prompt_logprobs", changed(prompt_logprobs=[*PROMPT_LOGPROBS[:5], None])),
}


@pytest.mark.parametrize(("kind", "reply"), NOT_SCORED.values(), ids=NOT_SCORED)
def test_scores_of_anything_else_are_a_fault_of_the_server(server, backend, tokenizer, kind, reply):
    server.always(reply)
    scoring = backend(api="completions", score=kind, tokenizer=tokenizer, retry={"max_attempts": 2, "max_wait": 0.05})
    answer = one(scoring, BOX)
    assert answer.status == "malformed"
    assert len(server.calls) == 2
    with pytest.raises(ServiceError):
        LanguageModel(scoring).choose(BOX.context, [" red", " blue"])


TEXT = ScoreRequest(BOX.context, BOX.continuation, "offsets")


@pytest.mark.parametrize(
    "reply",
    [
        echo(ECHOED, None, STARTS),
        echo(ECHOED, WORDS, STARTS, text="the box is red blue"),
        echo([*ECHOED, -9.0], [*WORDS, " and"], [*STARTS, 19], text="the box is red blue and"),
    ],
    ids=["starts", "tokens", "a generated token"],
)
def test_of_a_text_the_tokens_that_start_in_the_continuation_are_scored(server, backend, reply):
    server.next(reply)
    score = one(backend(api="completions", score="echo"), TEXT)
    assert (score.sum_nll, score.num_tokens, score.context_tokens) == (0.75, 2, 4)


@pytest.mark.parametrize(
    "reply",
    [
        echo(ECHOED),
        echo(ECHOED, None, STARTS[1:]),
        echo(ECHOED, None, STARTS[::-1]),
        echo(ECHOED, None, [0, 0, 1, 2, 3, 4]),
        echo([-0.1] * 6, None, STARTS),
        echo([-0.1] * 6, list("abcdef"), STARTS),
        echo(ECHOED, [*WORDS[:5], " green"], STARTS),
    ],
)
def test_scores_of_another_text_are_a_fault_of_the_server(server, backend, reply):
    server.always(reply)
    assert (
        one(backend(api="completions", score="echo", retry={"max_attempts": 1, "max_wait": 0.05}), TEXT).status
        == "malformed"
    )


def test_of_several_tokens_of_a_text_the_one_that_fits_is_taken(server, backend):
    def candidates(*pairs):
        return {str(n): {"logprob": logprob, "decoded_token": token} for n, (token, logprob) in enumerate(pairs)}

    fitting = [None, *(candidates((token, -1.0)) for token in (" box", " is"))]
    fitting += [candidates((" green", -0.1), (" red", -0.25)), candidates((" sky", -0.1), (" blue", -0.5))]
    server.next(changed(prompt_logprobs=fitting), changed(prompt_logprobs=[*fitting[:4], candidates((" sky", -0.1))]))
    scoring = backend(api="completions", score="vllm_prompt_logprobs")
    assert one(scoring, TEXT).sum_nll == 0.75
    with pytest.raises(UsageError, match="border of the continuation cannot be found"):
        one(scoring, TEXT)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.5])
def test_logprobs_that_cannot_be_are_a_fault_of_the_server(server, backend, value):
    server.always(changed(logprobs={"content": [{"logprob": -0.5}, {"logprob": value}]}))
    assert one(backend(), ask(PROMPT, logprobs=True)).status == "malformed"
    assert one(backend(), ask(PROMPT)).logprobs is None  # not asked for, not held against it


def test_scores_that_cannot_be_are_told(server, backend):
    scoring = backend(api="completions", score="echo")
    with pytest.raises(UsageError, match=r"border=separate on a server needs llm.tokenizer"):
        one(scoring, BOX)
    with pytest.raises(UsageError, match="empty continuation"):
        one(scoring, ScoreRequest("x", ""))
    answer = one(scoring, ScoreRequest("x", "y", "offsets"))
    assert (answer.status, answer.detail) == ("malformed", "the reply holds no scores")
    with pytest.raises(UsageError, match=r"llm=endpoint cannot score given text \(needed by score\)"):
        LanguageModel(backend()).score([BOX])


def test_a_request_that_is_too_long_is_refused_before_it_is_sent(server, backend, tokenizer):
    fitting, too_long = ask("the box is red"), ask("the box is red blue", item="pair0007")
    checked = backend(context_length=12, tokenizer=tokenizer)
    assert one(checked, fitting).status == "ok"
    with pytest.raises(UsageError, match=r"pair0007 is too long: 5 tokens and 8 to be generated exceed .*=12"):
        one(checked, too_long)
    assert len(server.calls) == 1
    with pytest.raises(UsageError, match=r"llm.tokenizer: .* holds no tokenizer.json"):
        one(backend(context_length=12, tokenizer="/nowhere"), fitting)


def test_many_calls_at_once_are_as_many_as_allowed(server, backend):

    def together(handler, body):
        """Answers when 8 calls are under way, as they must be at some time."""
        end = time.monotonic() + 20
        while server.most_at_once < 8 and time.monotonic() < end:
            time.sleep(0.01)
        handler.reply(200, answer_of(body))

    server.always(together)
    model = LanguageModel(backend(concurrency=8))
    answers = model.generate([ask(f"p{number}") for number in range(24)])
    assert [answer.text for answer in answers] == [f"P{number}" for number in range(24)]
    assert server.most_at_once == 8
    assert model.usage.prompt_tokens == 96
    assert json.dumps(server.calls).count('"p3"') == 1
