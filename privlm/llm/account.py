"""What calls cost: counted by price, held against the budget, kept with the replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privlm.llm.budget import Budget, BudgetExhausted, Spent
from privlm.llm.record import CallRecord, CallRow
from privlm.llm.tokens import estimated_tokens
from privlm.llm.types import Answer, Backend, GenerateRequest, Reply, Request, Score


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
            parts.append(f"{_rate(self.calls / self.seconds)} calls/s, {_rate(tokens / self.seconds)} tokens/s")
        return ", ".join(parts)


class Account:
    """The account of one run with one backend.

    record: where replies are stored, None for nowhere. price: dollars for a million tokens, in and out, None if
    unknown. payer: who pays in the record. keep_prompts: store prompts beside replies.
    """

    def __init__(
        self,
        backend: Backend,
        record: CallRecord | None,
        budget: Budget,
        price: tuple[float, float] | None,
        payer: str,
        keep_prompts: bool,
    ) -> None:
        self.usage = Usage(usd=None if price is None else 0.0)
        self._backend = backend
        self._record = record
        self._budget = budget
        self._price = price
        self._payer = payer
        self._keep_prompts = keep_prompts

    def exceeded(self, reserved: Spent) -> BudgetExhausted | None:
        return self._budget.exceeded(reserved)

    def estimate(self, request: Request) -> Spent:
        """What a call will cost at most, as far as can be told before it; only its being a call where nothing is
        limited.
        """
        if not self._budget.limits:
            return Spent(calls=1)
        prompt = self._backend.count_tokens(request)
        if prompt is None:
            prompt = estimated_tokens(request)
        return self._spent(prompt, request.sampling.max_tokens if isinstance(request, GenerateRequest) else 0)

    def cost(self, reply: Reply) -> Spent:
        if isinstance(reply, Score):
            return self._spent(reply.context_tokens + reply.num_tokens, 0)
        return self._spent(reply.prompt_tokens, reply.completion_tokens)

    def usd(self, reply: Reply) -> float | None:
        """What the reply costs, cached or not; None where no price is known."""
        return None if self._price is None else self.cost(reply).usd

    def keep(self, replies: Sequence[tuple[str, Request, Reply]], seconds: float) -> None:
        """Stores replies, by key, and counts their cost. seconds: of asking, since the last time."""
        rows = [
            CallRow(
                key,
                self._backend.name,
                self._backend.model,
                request,
                reply,
                self.cost(reply),
                has_price=self._price is not None,
                keep_request=self._keep_prompts,
            )
            for key, request, reply in replies
        ]
        total = sum((row.spent for row in rows), Spent(seconds=seconds))
        if self._record is not None:
            self._record.store(rows, self._payer, total)
        self._budget.spent += total
        usage = self.usage
        usage.calls += total.calls
        usage.prompt_tokens += total.prompt_tokens
        usage.completion_tokens += total.completion_tokens
        usage.seconds += total.seconds
        usage.estimated |= any(isinstance(row.reply, Answer) and row.reply.estimated for row in rows)
        if usage.usd is not None:
            usage.usd += total.usd

    def _spent(self, prompt: int, completion: int) -> Spent:
        price_in, price_out = self._price or (0.0, 0.0)
        return Spent(1, prompt, completion, (prompt * price_in + completion * price_out) / 1e6)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
