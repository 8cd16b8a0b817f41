"""Scripted language models: a table or a function in place of weights, and what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from privlm.llm.types import Answer, GenerateRequest, Reply, Request, Sampling, Score, ScoreRequest


def ask(prompt: str, **changes: Any) -> GenerateRequest:
    return GenerateRequest(prompt, Sampling(max_tokens=8), **changes)


class ScriptedBackend:
    """See privlm.llm.types.Backend. `reply` maps a request to its reply, or raises.

    The default answers a prompt by itself in capitals and scores a continuation by its length.
    """

    def __init__(
        self,
        reply: Callable[[Request], Reply] | None = None,
        *,
        parallel: int = 1,
        model: str = "scripted",
        capabilities: Iterable[str] = ("generate", "score"),
    ) -> None:
        self.name = "scripted"
        self.model = model
        self.parallel = parallel
        self.capabilities = frozenset(capabilities)
        self.asked: list[Request] = []
        self.batches: list[int] = []
        self.checks = 0
        self._reply = reply or self._default
        self._lock = threading.Lock()

    def check_ready(self) -> None:
        self.checks += 1

    def count_tokens(self, request: Request) -> int | None:
        return 4

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        with self._lock:
            self.batches.append(len(requests))
        for number, request in enumerate(requests):
            with self._lock:
                self.asked.append(request)
            yield number, self._reply(request)

    def hidden_states(self, texts: Sequence[str], layer: int) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...

    @staticmethod
    def _default(request: Request) -> Reply:
        if isinstance(request, ScoreRequest):
            return Score(float(len(request.continuation)), 1)
        assert isinstance(request.prompt, str)
        return Answer(request.prompt.upper(), "ok", "stop", prompt_tokens=4, completion_tokens=2)
