"""The LanguageModel that a runner holds: budget, call record and dispatch around a backend.

Every reply is stored before it is handed on, and nothing that the record knows is asked again. However asking ends (a
budget, a signal, a server that is gone), calls in flight are finished and stored first.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from privlm.errors import PrivLMError, ServiceError, UsageError
from privlm.llm.budget import Budget, BudgetExhausted, Spent
from privlm.llm.record import CallRecord, CallRow, call_key
from privlm.llm.tokens import estimated_tokens
from privlm.llm.types import (
    ANSWERED,
    Answer,
    Backend,
    GenerateRequest,
    OnReply,
    Reply,
    Request,
    Score,
    ScoreRequest,
)
from privlm.signals import Interrupted

if TYPE_CHECKING:
    from torch import Tensor


POLL_SECONDS = 0.2  # between two looks at signals and at the leases of others

DOINGS = {
    "generate": "generate text",
    "logprobs": "give the log-probabilities of the tokens it generates",
    "score": "score given text",
    "hidden_states": "give hidden states",
}


@dataclass
class Usage:
    """What a LanguageModel has done since it was opened.

    calls: asked of the backend. cached: replies served from the record. usd: None where no price is known. estimated:
    some token counts are our estimate. seconds: spent asking.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    usd: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        """One line for a log: calls, tokens, cost, throughput."""
        tokens = self.prompt_tokens + self.completion_tokens
        parts = [f"{self.calls:,} calls", f"{self.cached:,} cached"]
        parts.append(f"{tokens:,} tokens{' (estimated)' if self.estimated else ''}")
        parts += [f"{self.usd:.4f} USD"] if self.usd is not None else []
        if self.calls and self.seconds:
            parts.append(f"{self.calls / self.seconds:.3g} calls/s, {tokens / self.seconds:.3g} tokens/s")
        return ", ".join(parts)


@dataclass(frozen=True)
class Choice:
    """The option that `choose` took, and the scores of all in their order."""

    index: int
    scores: tuple[Score, ...]


@dataclass
class _Pending:
    """A distinct request of a batch and the places in the batch that want its reply."""

    key: str
    request: Request
    places: list[int]


class LanguageModel:
    """Asks a backend, through the call record and under budgets. For one thread; close it with the record.

    cache: off, read, write (and read) or replay_only, of `record`. budget: of the whole run; anything with the fields
    of privlm.config.LLMBudget, or a Budget that knows what earlier tries have spent. price: dollars for a million
    tokens, in and out. stop: signal number once the run is asked to stop, else 0. label: the words of the command line
    that chose this model, for messages. payer: who pays in the record. keep_prompts: store prompts beside replies.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        record: CallRecord | None = None,
        cache: str = "write",
        budget: Any = None,
        price: tuple[float, float] | None = None,
        stop: Callable[[], int] = lambda: 0,
        label: str = "",
        payer: str = "",
        keep_prompts: bool = True,
    ) -> None:
        self.backend = backend
        self.record = record if cache != "off" else None
        self.cache = cache
        self.usage = Usage(usd=None if price is None else 0.0)
        self._budget = budget if isinstance(budget, Budget) else Budget.of(budget) if budget is not None else Budget()
        self._price = price
        self._stop = stop
        self._label = label or f"llm={backend.name}"
        self._payer = payer
        self._keep_prompts = keep_prompts
        self._is_ready = False
        self._stored_at = time.monotonic()
        self._renewed_at = time.monotonic()

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
                raise UsageError(f"{self._label} cannot {DOINGS[capability]} (needed by {by}); {remedy}")

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        on_reply: OnReply | None = None,
        budget: Budget | None = None,
        failures: str = "raise",
    ) -> list[Answer]:
        """Answers in the order of `requests`; equal requests are asked once.

        on_reply: is called as each answer is stored, cached ones first. budget: of these calls, beside the run's.
        failures: raise, after all others are answered, when calls have failed for good; or return them, by their
        status.

        Raises:
            BudgetExhausted: when the next call would exceed a budget.
            ServiceError: when the server does not answer; the same requests later ask only what is missing.
            UsageError: for a request that can never be answered.
            Interrupted: when the run is asked to stop.
        """
        self.require("generate", by="generate")
        if any(request.logprobs for request in requests):
            self.require("logprobs", by="generate(logprobs=True)")
        return cast("list[Answer]", self._replies(requests, on_reply, budget, failures))

    def score(
        self, requests: Sequence[ScoreRequest], *, on_reply: OnReply | None = None, budget: Budget | None = None
    ) -> list[Score]:
        """Scores in the order of `requests`; see `generate`."""
        self.require("score", by="score")
        return cast("list[Score]", self._replies(requests, on_reply, budget, "raise"))

    def choose(
        self,
        context: str,
        options: Sequence[str],
        *,
        by: str = "avg_nll",
        border: str = "separate",
        budget: Budget | None = None,
    ) -> Choice:
        """The most likely continuation of `context`: the lowest avg_nll or sum_nll; of equal ones the first."""
        requests = [ScoreRequest(context, option, border) for option in options]  # type: ignore[arg-type]
        scores = self.score(requests, budget=budget)
        index = min(range(len(scores)), key=lambda number: getattr(scores[number], by))
        return Choice(index, tuple(scores))

    def hidden_states(self, texts: Sequence[str], layer: int) -> Tensor:
        """Mean over tokens of a layer's hidden states, float32 [num_texts, width]; never cached."""
        self.require("hidden_states", by="hidden_states")
        self._make_ready()
        return self.backend.hidden_states(texts, layer)

    def count_tokens(self, request: Request) -> int | None:
        """Tokens that the request puts in, None where no tokenizer is at hand."""
        return self.backend.count_tokens(request)

    def usd(self, reply: Reply) -> float | None:
        """What the reply costs at the known price, cached or not; None where no price is known."""
        return None if self._price is None else self._cost(reply).usd

    # --- a batch: from the record, else from the backend ------------------------------------------------------------

    def _replies(
        self, requests: Sequence[Request], on_reply: OnReply | None, budget: Budget | None, failures: str
    ) -> list[Reply]:
        batch: dict[str, _Pending] = {}
        for place, request in enumerate(requests):
            key = call_key(self.backend.name, self.model, request)
            batch.setdefault(key, _Pending(key, request, [])).places.append(place)
        replies: list[Reply | None] = [None] * len(requests)

        def hand_on(key: str, reply: Reply) -> None:
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
            budgets = [self._budget] + ([budget] if budget is not None else [])
            _Dispatch(self, missing, budgets, hand_on).run()
            if failures == "raise":
                self._raise_failures([(batch_item, replies[batch_item.places[0]]) for batch_item in missing])
        return cast("list[Reply]", replies)

    def _raise_failures(self, asked: list[tuple[_Pending, Reply | None]]) -> None:
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

    def _writes(self) -> CallRecord | None:
        return self.record if self.cache == "write" else None

    # --- cost -------------------------------------------------------------------------------------------------------

    def _estimate(self, request: Request) -> Spent:
        """What a call will cost at most, as far as can be told before it."""
        prompt = self.backend.count_tokens(request)
        if prompt is None:
            prompt = estimated_tokens(request)
        completion = request.sampling.max_tokens if isinstance(request, GenerateRequest) else 0
        return Spent(1, prompt, completion, self._usd(prompt, completion) or 0.0)

    def _cost(self, reply: Reply) -> Spent:
        if isinstance(reply, Score):
            prompt, completion = reply.context_tokens + reply.num_tokens, 0
        else:
            prompt, completion = reply.prompt_tokens, reply.completion_tokens
        return Spent(1, prompt, completion, self._usd(prompt, completion) or 0.0)

    def _usd(self, prompt: int, completion: int) -> float | None:
        if self._price is None:
            return None
        return (prompt * self._price[0] + completion * self._price[1]) / 1e6

    def _keep(self, replies: Sequence[tuple[_Pending, Reply]], budgets: Iterable[Budget]) -> None:
        """Stores replies and counts their cost."""
        now = time.monotonic()
        rows = [
            CallRow(
                pending.key,
                self.backend.name,
                self.model,
                pending.request,
                reply,
                self._cost(reply),
                has_price=self._price is not None,
                keep_request=self._keep_prompts,
            )
            for pending, reply in replies
        ]
        if (record := self._writes()) is not None:
            record.store(rows, self._payer, now - self._stored_at)
        self._stored_at = now
        for row in rows:
            for budget in budgets:
                budget.add(row.spent)
            self.usage.calls += 1
            self.usage.prompt_tokens += row.spent.prompt_tokens
            self.usage.completion_tokens += row.spent.completion_tokens
            self.usage.estimated |= isinstance(row.reply, Answer) and row.reply.estimated
            if self.usage.usd is not None:
                self.usage.usd += row.spent.usd


class _Dispatch:
    """One batch of requests that the record does not answer, on its way to the backend."""

    def __init__(
        self,
        model: LanguageModel,
        missing: Sequence[_Pending],
        budgets: list[Budget],
        hand_on: Callable[[str, Reply], None],
    ) -> None:
        self.model = model
        self.backend = model.backend
        self.record = model._writes()
        self.budgets = budgets
        self.is_limited = any(budget.is_limited for budget in budgets)
        self.hand_on = hand_on
        self.waiting = deque(missing)
        self.elsewhere: list[_Pending] = []  # other processes are asking these
        self.in_flight: dict[str, tuple[_Pending, Spent]] = {}
        self.results: queue.SimpleQueue[tuple[str, Reply | BaseException]] = queue.SimpleQueue()
        self.error: BaseException | None = None  # why no further call is started

    def run(self) -> None:
        began = time.monotonic()
        try:
            if self.backend.parallel > 1:
                self._run_threads()
            else:
                self._run_in_place()
        finally:
            self.model.usage.seconds += time.monotonic() - began
            if self.record is not None:
                with contextlib.suppress(PrivLMError):  # what has stopped us may be the record's disk
                    self.record.release()

    # --- many calls at once (a server) ------------------------------------------------------------------------------

    def _run_threads(self) -> None:
        while self.in_flight or (self.error is None and (self.waiting or self.elsewhere)):
            self._check_stop()
            while self.error is None and self.waiting and len(self.in_flight) < self.backend.parallel:
                before = len(self.waiting)
                self._start(self._claim(self.backend.parallel - len(self.in_flight)))
                if len(self.waiting) == before:
                    break  # a budget: there may be room when the calls under way have told their real cost
            self._collect()
        if self.error is not None:
            raise self.error

    def _start(self, allowed: Sequence[tuple[_Pending, Spent]]) -> None:
        if not allowed:
            return
        try:
            self.model._make_ready()
        except (ServiceError, UsageError) as error:
            self.error = error
            return
        for pending, estimate in allowed:
            self.in_flight[pending.key] = pending, estimate
            # A daemon: a second Ctrl-C leaves at once, whatever a server is doing.
            threading.Thread(target=self._ask_one, args=(pending,), daemon=True).start()

    def _ask_one(self, pending: _Pending) -> None:
        try:
            ((_, reply),) = self.backend.ask([pending.request])
            self.results.put((pending.key, reply))
        except BaseException as error:
            self.results.put((pending.key, error))

    def _collect(self) -> None:
        """Waits a moment for results; stores all that have come in one transaction, then hands them on."""
        if self.elsewhere or not self.in_flight:
            self._look_elsewhere()
        results = []
        try:
            if self.in_flight:
                results.append(self.results.get(timeout=POLL_SECONDS))
            elif self.elsewhere:
                time.sleep(POLL_SECONDS)
            while True:
                results.append(self.results.get_nowait())
        except queue.Empty:
            pass
        replies = []
        for key, result in results:
            pending, _ = self.in_flight.pop(key)
            reply = getattr(result, "answer", None) if isinstance(result, BaseException) else result
            if isinstance(result, BaseException):
                self.error = self.error or result
            if reply is not None:
                replies.append((pending, reply))
        self._finish(replies)

    # --- one call after the other (weights in this process, recorded answers) ---------------------------------------

    def _run_in_place(self) -> None:
        while self.waiting or self.elsewhere:
            self._check_stop()
            if self.error is not None:
                raise self.error
            batch = [pending for pending, _ in self._claim(len(self.waiting))]
            if self.error is not None:
                raise self.error
            if not batch:
                self._look_elsewhere()
                if not self.waiting and self.elsewhere:
                    time.sleep(POLL_SECONDS)
                continue
            self.model._make_ready()
            answered = set()
            for index, reply in self.backend.ask([pending.request for pending in batch]):
                answered.add(index)
                self._finish([(batch[index], reply)])
                self._check_stop()
                self._check_seconds()
                if self.error is not None:
                    break
            self.waiting.extendleft(pending for index, pending in enumerate(batch) if index not in answered)

    # --- what both share --------------------------------------------------------------------------------------------

    def _claim(self, most: int) -> list[tuple[_Pending, Spent]]:
        """Takes up to `most` requests that the budgets have room for and that are ours to ask."""
        allowed: list[tuple[_Pending, Spent]] = []
        reserved = sum((estimate for _, estimate in self.in_flight.values()), Spent())
        while self.waiting and len(allowed) < most:
            estimate = self.model._estimate(self.waiting[0].request) if self.is_limited else Spent(1)
            asked = reserved + estimate
            full = next(((budget, limit) for budget in self.budgets if (limit := budget.exceeded(asked))), None)
            if full is not None:
                if not allowed and not self.in_flight:  # else there may be room when the real cost is known
                    self.error = BudgetExhausted(*full)
                break
            reserved = asked
            allowed.append((self.waiting.popleft(), estimate))
        if self.record is None or not allowed:
            return allowed
        claim = self.record.claim([pending.key for pending, _ in allowed])
        by_key = {pending.key: (pending, estimate) for pending, estimate in allowed}
        self.elsewhere += [by_key[key][0] for key in claim.busy]
        self._hand_on_cached(claim.answered)
        return [by_key[key] for key in claim.granted]

    def _look_elsewhere(self) -> None:
        """Takes what other processes have answered meanwhile, and what they have given up."""
        if self.record is None or not self.elsewhere:
            return
        claim = self.record.claim([pending.key for pending in self.elsewhere])
        self.waiting.extend(pending for pending in self.elsewhere if pending.key in claim.granted)
        self.elsewhere = [pending for pending in self.elsewhere if pending.key in claim.busy]
        self._hand_on_cached(claim.answered)

    def _hand_on_cached(self, replies: dict[str, Reply]) -> None:
        for key, reply in replies.items():
            self.model.usage.cached += 1
            self._guarded(key, reply)

    def _finish(self, replies: Sequence[tuple[_Pending, Reply]]) -> None:
        """Stores, then hands on."""
        if replies:
            self.model._keep(replies, self.budgets)
        for pending, reply in replies:
            self._guarded(pending.key, reply)
        if self.record is not None and time.monotonic() - self.model._renewed_at > self.record.lease_seconds / 3:
            self.record.renew()
            self.model._renewed_at = time.monotonic()

    def _guarded(self, key: str, reply: Reply) -> None:
        """A caller's error must not lose the calls in flight."""
        try:
            self.hand_on(key, reply)
        except BaseException as error:
            self.error = self.error or error

    def _check_stop(self) -> None:
        if self.error is None and (signum := self.model._stop()):
            self.error = Interrupted(signum)

    def _check_seconds(self) -> None:
        for budget in self.budgets:
            if self.error is None and budget.exceeded(Spent()) == "seconds":
                self.error = BudgetExhausted(budget, "seconds")


def _item(pending: _Pending) -> str:
    """How messages call a request: by its item, else by its key; never by its text."""
    return getattr(pending.request, "item", None) or f"request {pending.key[:12]}"
