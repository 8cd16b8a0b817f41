"""What one item may cost. The budget of the whole run is the language model's own (privlm.llm.client)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from privlm.errors import PrivLMError
from privlm.llm.schema import LLMBudget
from privlm.llm.types import Answer, Reply

UNLIMITED = LLMBudget(calls=None, tokens=None, usd=None, seconds=None)


class ItemBudgetExhausted(PrivLMError):
    """The next call would exceed the budget of this item. A program takes its forced answer, or lets it pass: then the
    item ends without a value and with the status budget_exhausted.
    """


@dataclass
class Spending:
    """What an item has spent. A call counts whether the call record answers it or not, so that an item that is taken up
    again stops at the same call.

    price: what a reply costs, None where no price is known. exhausted: a call was refused.
    """

    limits: LLMBudget
    price: Callable[[Reply], float | None]
    calls: int = 0
    tokens: int = 0
    cached: int = 0
    usd: float = 0.0
    exhausted: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def require(self, num_calls: int) -> None:
        """Raises ItemBudgetExhausted unless `num_calls` more calls are within the limits."""
        limits = self.limits
        reached = {
            "calls": limits.calls is not None and self.calls + num_calls > limits.calls,
            "tokens": limits.tokens is not None and self.tokens >= limits.tokens,
            "usd": limits.usd is not None and self.usd >= limits.usd,
            "seconds": limits.seconds is not None and self.seconds >= limits.seconds,
        }
        for name, is_reached in reached.items():
            if is_reached:
                self.exhausted = True
                raise ItemBudgetExhausted(f"the budget of {name} of this item is spent")

    def add(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            self.calls += 1
            self.cached += reply.cached
            self.tokens += num_tokens(reply)
            self.usd += self.price(reply) or 0.0


def num_tokens(reply: Reply) -> int:
    """Tokens put in and got out."""
    if isinstance(reply, Answer):
        return reply.prompt_tokens + reply.completion_tokens
    return reply.context_tokens + reply.num_tokens
