"""Language models that answer from a script, and remember what they were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from privlm.llm.types import Answer, GenerateRequest, Reply, Score, ScoreRequest


class ScriptedModel:
    """What a program needs of a LanguageModel.

    write: prompt -> text, or a whole Answer. nll: (context, continuation) -> mean nats per token; a token is a word.
    batches: the requests of each batch, in order.
    """

    def __init__(
        self,
        write: Callable[[Any], str | Answer] = lambda prompt: "yes",
        nll: Callable[[str, str], float] = lambda context, continuation: 1.0,
        logprobs: tuple[float, ...] | None = None,
    ) -> None:
        self.write = write
        self.nll = nll
        self.logprobs = logprobs
        self.batches: list[list[GenerateRequest] | list[ScoreRequest]] = []

    def generate(self, requests: Sequence[GenerateRequest], *, failures: str) -> list[Answer]:
        assert failures == "return"
        self.batches.append(list(requests))
        return [self._answer(request) for request in requests]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self.batches.append(list(requests))
        return [self._score(request) for request in requests]

    def usd(self, reply: Reply) -> float | None:
        return 0.25

    @property
    def prompts(self) -> list[Any]:
        return [request.prompt for batch in self.batches for request in batch if isinstance(request, GenerateRequest)]

    def _answer(self, request: GenerateRequest) -> Answer:
        written = self.write(request.prompt)
        if isinstance(written, Answer):
            return written
        status = "ok" if written else "empty"
        return Answer(written, status, None, 10, len(written.split()), logprobs=self.logprobs)

    def _score(self, request: ScoreRequest) -> Score:
        num_tokens = len(request.continuation.split())
        nll = self.nll(request.context, request.continuation)
        return Score(num_tokens * nll, num_tokens, context_tokens=len(request.context.split()))
