"""The LanguageModel that a runner holds: budget, call record and dispatch around a backend.

Every reply is stored before it is handed on, and nothing that the record knows is asked again. However asking ends (a
budget, a signal, a server that is gone), calls in flight are finished and stored first.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, overload

from privlm.errors import ServiceError, UsageError
from privlm.llm.account import Account, Usage
from privlm.llm.budget import Budget, BudgetExhausted
from privlm.llm.dispatch import Dispatch, Pending
from privlm.llm.record import CallRecord, call_key
from privlm.llm.types import (
    ANSWERED,
    Answer,
    Backend,
    GenerateRequest,
    Norm,
    OnReply,
    Pooling,
    Reply,
    Request,
    Score,
    ScoreRequest,
    likeliest,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BudgetExhausted", "Choice", "LanguageModel", "Usage"]

logger = logging.getLogger("privlm")

DOINGS = {
    "generate": "generate text",
    "logprobs": "give the log-probabilities of the tokens it generates",
    "beams": "search with beams",
    "top_k": "draw from the k most likely tokens",
    "score": "score given text",
    "hidden_states": "give hidden states",
}


@dataclass(frozen=True)
class Choice:
    """The option that `choose` took, and the scores of all in their order."""

    index: int
    scores: tuple[Score, ...]


class LanguageModel:
    """Asks a backend, through the call record and under budgets. For one thread; close it with the record.

    cache: off, read, write (and read) or replay_only, of `record`. budget, price, payer, keep_prompts: see
    privlm.llm.account. stop: signal number once the run is asked to stop, else 0. label: the words of the command line
    that chose this model, for messages.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        record: CallRecord | None = None,
        cache: str = "write",
        budget: Budget | None = None,
        price: tuple[float, float] | None = None,
        stop: Callable[[], int] = lambda: 0,
        label: str = "",
        payer: str = "",
        keep_prompts: bool = True,
    ) -> None:
        self.backend = backend
        self.record = record if cache != "off" else None
        self.cache = cache
        self._writes = self.record if cache == "write" else None
        self._account = Account(backend, self._writes, budget or Budget(), price, payer, keep_prompts)
        self._stop = stop
        self._label = label or f"llm={backend.name}"
        self._is_ready = False
        self._answered_by: dict[str, None] = {}

    @property
    def answered_by(self) -> tuple[str, ...]:
        """Who has answered, by the names that the server gave, cached answers included; the first one first."""
        return tuple(self._answered_by)

    @property
    def usage(self) -> Usage:
        """What was asked since this object was made."""
        return self._account.usage

    @property
    def model(self) -> str:
        return self.backend.model

    @property
    def capabilities(self) -> frozenset[str]:
        return self.backend.capabilities

    def require(self, *capabilities: str, by: str) -> None:
        """Raises UsageError, before any call, for what the backend cannot do. by: who needs it, e.g. `step filter`."""
        for capability in capabilities:
            if capability not in self.capabilities:
                remedy = "use a local model" + (" or a server with prompt logprobs" if capability == "score" else "")
                if self.backend.name == "local":  # an encoder
                    remedy = "use one that continues texts, such as llm=smollm2"
                raise UsageError(f"{self._label} cannot {DOINGS[capability]} (needed by {by}); {remedy}")

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        on_reply: OnReply | None = None,
        failures: str = "raise",
    ) -> list[Answer]:
        """Answers in the order of `requests`; equal requests are asked once.

        on_reply: is called as each answer is stored, cached ones first. failures: raise, after all others are answered,
        when calls have failed for good; or return them, by their status.

        Raises:
            BudgetExhausted: when the next call would exceed the budget.
            ServiceError: when the server does not answer; the same requests later ask only what is missing.
            UsageError: for a request that can never be answered.
            Interrupted: when the run is asked to stop.
        """
        self.require("generate", by="generate")
        for request in requests:
            if request.logprobs:
                self.require("logprobs", by="generate(logprobs=True)")
            if request.sampling.num_beams > 1:
                self.require("beams", by=f"num_beams={request.sampling.num_beams}")
            if request.sampling.top_k is not None:
                self.require("top_k", by=f"top_k={request.sampling.top_k}")
        return cast("list[Answer]", self._replies(requests, on_reply, failures))

    def score(self, requests: Sequence[ScoreRequest], *, on_reply: OnReply | None = None) -> list[Score]:
        """Scores in the order of `requests`; see `generate`."""
        self.require("score", by="score")
        return cast("list[Score]", self._replies(requests, on_reply, "raise"))

    def choose(
        self,
        context: str,
        options: Sequence[str],
        *,
        by: str = "avg_nll",
        border: str = "separate",
    ) -> Choice:
        """The most likely continuation of `context`: the lowest avg_nll or sum_nll; of equal ones the first.

        Raises UsageError where a score is not a number.
        """
        requests = [ScoreRequest(context, option, border) for option in options]  # type: ignore[arg-type]
        scores = self.score(requests)
        return Choice(likeliest(scores, by), tuple(scores))

    @overload
    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Literal["last", "mean"] = "mean", norm: Norm = "raw"
    ) -> Tensor: ...

    @overload
    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Literal["tokens"], norm: Norm = "raw"
    ) -> list[Tensor]: ...

    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw"
    ) -> Tensor | list[Tensor]:
        """What a layer holds for given texts: see privlm.llm.types.Backend for shapes and options. Never cached.

        Raises UsageError: the backend gives none, or the model does not have this layer.
        """
        self.require("hidden_states", by="hidden_states")
        self._make_ready()
        return self.backend.hidden_states(texts, layer, pooling, norm)

    def count_tokens(self, request: Request) -> int | None:
        """Tokens that the request puts in, None where no tokenizer is at hand."""
        return self.backend.count_tokens(request)

    def usd(self, reply: Reply) -> float | None:
        """What the reply costs at the known price, cached or not; None where no price is known."""
        return self._account.usd(reply)

    # --- a batch: from the record, else from the backend ------------------------------------------------------------

    def _replies(self, requests: Sequence[Request], on_reply: OnReply | None, failures: str) -> list[Reply]:
        batch: dict[str, Pending] = {}
        for place, request in enumerate(requests):
            key = call_key(self.backend.name, self.model, request)
            batch.setdefault(key, Pending(key, request, [])).places.append(place)
        replies: list[Reply | None] = [None] * len(requests)

        def hand_on(key: str, reply: Reply) -> None:
            self._notice(reply)
            for place in batch[key].places:
                replies[place] = reply
                if on_reply is not None:
                    on_reply(place, reply)

        if self.record is not None:
            for key, reply in self.record.get(list(batch)).items():
                self.usage.cached += 1
                hand_on(key, reply)
        missing = [pending for pending in batch.values() if replies[pending.places[0]] is None]
        if missing:
            if self.cache == "replay_only":
                where = self.record.path if self.record is not None else "no record"
                raise UsageError(
                    f"llm.cache=replay_only: {where} has no answer for {len(missing)} of {len(batch)} requests, first "
                    f"{_item(missing[0])}; ask with llm.cache=write first"
                )
            Dispatch(
                self.backend,
                missing,
                record=self._writes,
                account=self._account,
                hand_on=hand_on,
                make_ready=self._make_ready,
                stop=self._stop,
            ).run()
            if failures == "raise":
                self._raise_failures([(pending, replies[pending.places[0]]) for pending in missing])
        return cast("list[Reply]", replies)

    def _notice(self, reply: Reply) -> None:
        """A server that was started again may serve another model under the old name."""
        name = reply.answered_by
        if name is None or name in self._answered_by:
            return
        self._answered_by[name] = None
        if len(self._answered_by) > 1:
            logger.warning("%s: answers as %s now, before as %s", self._label, name, self.answered_by[-2])

    def _raise_failures(self, asked: list[tuple[Pending, Reply | None]]) -> None:
        failed = [(item, reply) for item, reply in asked if isinstance(reply, Answer) and reply.status not in ANSWERED]
        if not failed:
            return
        never = [(item, reply) for item, reply in failed if reply.status == "client_error"]
        item, reply = (never or failed)[0]
        counts = ", ".join(f"{number} {status}" for status, number in Counter(r.status for _, r in failed).items())
        message = f"{self._label}: {len(failed)} of {len(asked)} calls failed ({counts}); {_item(item)}: {reply.detail}"
        if never:
            raise UsageError(message)
        raise ServiceError(f"{message}; what was answered is kept, the same command asks the rest again")

    def _make_ready(self) -> None:
        if not self._is_ready:
            self.backend.check_ready()
            self._is_ready = True


def _item(pending: Pending) -> str:
    """How messages call a request: by its item, else by its key; never by its text."""
    return getattr(pending.request, "item", None) or f"request {pending.key[:12]}"
