"""A server that speaks the OpenAI protocol, chat or completions: the hosted ones, vLLM, llama.cpp, transformers serve.

Attempts that may succeed when repeated are (privlm.llm.endpoint.retry). What then still fails is an answer with its
status if the request may be at fault, and ends asking (ServiceError) if the server is: when it cannot be reached, is
overloaded, or has failed several requests in a row. Refusals of the key, the address or the model are UsageErrors at
once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from privlm.errors import ServiceError, UsageError
from privlm.llm.endpoint.connection import Connection
from privlm.llm.endpoint.limiter import Limiter
from privlm.llm.endpoint.protocol import ONLY_REASONING, are_logprobs, parse_reply, tells_an_error
from privlm.llm.endpoint.retry import CallFailure, retrying
from privlm.llm.endpoint.scores import ScoreFault, Sent, echoed_score, prompt_logprobs_score
from privlm.llm.tokens import TokenCounter, texts_of
from privlm.llm.types import Answer, GenerateRequest, Message, Norm, Pooling, Reply, Request, Score, ScoreRequest
from privlm.signals import Interrupted

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("privlm")

FAILURES_IN_A_ROW = 3
"""Requests that may fail for good, one after the other, before the server is held to be at fault."""

SLEEP_SLICE = 0.1  # seconds between two looks at a request to stop


class NoAnswerError(ServiceError):
    """Asking ends here. answer: of the request that found out, to be kept in the record."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


class EndpointBackend:
    """See privlm.llm.types.Backend. Neither beams nor top_k: the protocol knows no such fields, and many servers leave
    out what they do not know without a word.

    config: privlm.llm.schema.EndpointLLMConfig. stop: signal number once the run is asked to stop; waiting for a turn
    or for another attempt then ends.
    """

    name = "endpoint"

    def __init__(self, config: Any, stop: Callable[[], int] = lambda: 0) -> None:
        self.model = f"{config.model} ({config.api})"
        self.parallel = config.concurrency
        scores = {"score"} if config.score != "none" else set()
        self.capabilities = frozenset({"generate", "logprobs"} | scores)
        self._config = config
        self._connection = Connection(config)
        self._url = self._connection.url
        self._stop = stop
        self._limiter = Limiter(config.concurrency, config.rpm, config.tpm, check=self._check_stop)
        self._counter = TokenCounter(config.tokenizer)
        self._lock = threading.Lock()
        self._failures = 0
        self._has_told_of_reasoning = False

    def check_ready(self) -> None:
        """Looks whether anybody answers at the address, which costs nothing. A server that is loading its model is
        waited for, as for an answer.

        Raises ServiceError within the connect timeout where there is nobody, UsageError without a key.
        """
        try:
            for attempt in self._retrying():
                with attempt:
                    self._connection.look_at_health()
        except CallFailure as failure:
            raise ServiceError(
                f"{self._url} does not answer ({failure.detail}): start the server, or correct llm.base_url"
            ) from failure

    def count_tokens(self, request: Request) -> int | None:
        return self._counter.count(request)

    def ask(self, requests: Sequence[Request]) -> Iterable[tuple[int, Reply]]:
        for number, request in enumerate(requests):
            yield number, self._reply(request)

    def hidden_states(self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw") -> Tensor:
        raise UsageError("llm=endpoint: a server gives no hidden states; use a local model")

    def close(self) -> None:
        self._connection.close()

    # --- one request ------------------------------------------------------------------------------------------------

    def _reply(self, request: Request) -> Reply:
        self._check_length(request)
        path, body = self._body(request)
        attempts = 0
        try:
            for attempt in self._retrying():
                with attempt:
                    attempts += 1
                    reply = self._attempt(path, body, request)
        except CallFailure as failure:
            return self._failed(failure, attempts)
        with self._lock:
            self._failures = 0
        return replace(reply, attempts=attempts) if isinstance(reply, Answer) else reply

    def _attempt(self, path: str, body: dict[str, Any], request: Request) -> Reply:
        with self._limiter.call(self._estimated_tokens(request)) as admission:
            began = time.monotonic()
            try:
                content = self._connection.post(path, body, texts_of(request))
            except CallFailure as failure:
                if failure.http_status == 429:
                    self._limiter.lower(admission, failure.retry_after)
                self._refuse_long_wait(failure)
                raise
            latency = 1000.0 * (time.monotonic() - began)
            if isinstance(request, ScoreRequest):
                score = self._score(content, request, body["prompt"])
                self._limiter.succeed(admission, score.context_tokens + score.num_tokens)
                return score
            answer = self._answer(content, request)
            self._limiter.succeed(admission, answer.prompt_tokens + answer.completion_tokens)
        return replace(answer, latency_ms=latency)

    def _refuse_long_wait(self, failure: CallFailure) -> None:
        longest = self._config.retry.max_wait
        if failure.retry_after is not None and failure.retry_after > longest:
            message = f"asks to wait {failure.retry_after:.0f} s, longer than llm.retry.max_wait={longest:g}"
            raise self._no_answer(f"{message} ({failure.detail})", failure, 1) from failure

    def _failed(self, failure: CallFailure, attempts: int) -> Answer:
        """The answer of a request that failed for good, unless the server is at fault."""
        answer = _failed_answer(failure, attempts)
        if failure.status in ("refused", "client_error"):
            return answer
        with self._lock:
            self._failures += 1
            in_a_row = self._failures
        if failure.gone:
            raise self._no_answer(f"does not answer ({failure.detail}; {attempts} attempts)", failure, attempts)
        if in_a_row >= FAILURES_IN_A_ROW:
            message = f"has failed {in_a_row} requests in a row ({failure.detail}; {attempts} attempts each)"
            raise self._no_answer(message, failure, attempts)
        return answer

    def _no_answer(self, message: str, failure: CallFailure, attempts: int) -> NoAnswerError:
        message = f"{self._url} {message}; what was answered is kept, the same command goes on"
        return NoAnswerError(message, _failed_answer(failure, attempts))

    def _answer(self, content: Any, request: GenerateRequest) -> Answer:
        answer = parse_reply(content)
        if answer is None:
            raise self._malformed(content, request, "the reply is not the protocol")
        if not request.logprobs:
            answer = replace(answer, logprobs=None)
        elif answer.status in ("ok", "length") and answer.logprobs is None:
            raise UsageError(f"{self._url} returns no logprobs for {self._config.model}; use a local model")
        elif not are_logprobs(answer.logprobs or ()):
            raise self._malformed(content, request, "a logprob of the reply is not a number, infinite or above 0")
        if answer.detail == ONLY_REASONING:
            self._tell_of_reasoning(answer.status)
        if answer.estimated:
            prompt = answer.prompt_tokens or self._counter.estimate(request)
            answer = replace(answer, prompt_tokens=prompt, completion_tokens=self._counter.estimate_text(answer.text))
        return replace(answer, http_status=200)

    def _score(self, content: Any, request: ScoreRequest, prompt: str | list[int]) -> Score:
        read = echoed_score if self._config.score == "echo" else prompt_logprobs_score
        num_tokens = self._counter.num_continuation_tokens(request) if isinstance(prompt, list) else None
        sent = Sent(request, prompt if isinstance(prompt, list) else None, num_tokens)
        if tells_an_error(content):
            raise self._malformed(content, request, "the reply is not the protocol")
        try:
            score = read(content, sent)
        except ScoreFault as fault:
            raise self._malformed(content, request, str(fault)) from fault
        model = content.get("model")
        return replace(score, answered_by=model if isinstance(model, str) else None)

    def _malformed(self, content: Any, request: Request, detail: str) -> CallFailure:
        message = self._connection.message(content, texts_of(request))
        return CallFailure("malformed", message or detail, http_status=200)

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        if isinstance(request, ScoreRequest):
            return "/completions", self._score_body(request)
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._config.model,
            self._config.max_tokens_field: sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed + request.sample_index
        if self._config.api == "chat":
            turns = (Message("user", request.prompt),) if isinstance(request.prompt, str) else request.prompt
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in turns]
            body |= {"logprobs": True} if request.logprobs else {}
            return "/chat/completions", body
        if not isinstance(request.prompt, str):
            raise UsageError("llm.api=completions continues a text and takes no messages: use llm.api=chat")
        body |= {"prompt": request.prompt} | ({"logprobs": 1} if request.logprobs else {})
        return "/completions", body

    def _score_body(self, request: ScoreRequest) -> dict[str, Any]:
        if not request.continuation:
            raise UsageError("an empty continuation cannot be scored")
        prompt: str | list[int] = request.context + request.continuation
        if request.border == "separate":
            prompt = self._counter.score_ids(request)
        body: dict[str, Any] = {"model": self._config.model, "prompt": prompt, "temperature": 0.0}
        if self._config.score == "echo":
            return body | {"echo": True, "max_tokens": 0, "logprobs": 1}
        return body | {"max_tokens": 1, "prompt_logprobs": 0}

    def _check_length(self, request: Request) -> None:
        """A server may accept more than its model can read without a word."""
        limit, prompt = self._config.context_length, self._counter.count(request)
        room = request.sampling.max_tokens if isinstance(request, GenerateRequest) else 0
        if limit is not None and prompt is not None and prompt + room > limit:
            name = getattr(request, "item", None) or "a request"
            raise UsageError(
                f"{name} is too long: {prompt} tokens and {room} to be generated exceed llm.context_length={limit}"
            )

    def _estimated_tokens(self, request: Request) -> int:
        room = request.sampling.max_tokens if isinstance(request, GenerateRequest) else 0
        return self._counter.estimate(request) + room

    # --- waiting and speaking ---------------------------------------------------------------------------------------

    def _retrying(self) -> Iterator[Any]:
        retry = self._config.retry
        return iter(retrying(retry.max_attempts, retry.max_wait, self._sleep))

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check_stop()
            time.sleep(min(left, SLEEP_SLICE))

    def _check_stop(self) -> None:
        if signum := self._stop():
            raise Interrupted(signum)

    def _tell_of_reasoning(self, status: str) -> None:
        with self._lock:
            told, self._has_told_of_reasoning = self._has_told_of_reasoning, True
        if not told:
            remedy = "raise max_tokens of what asks it" if status == "length" else "turn its reasoning off"
            logger.warning("%s: %s (status %s); %s", self._url, ONLY_REASONING, status, remedy)


def _failed_answer(failure: CallFailure, attempts: int) -> Answer:
    return Answer("", failure.status, attempts=attempts, http_status=failure.http_status, detail=failure.detail)
