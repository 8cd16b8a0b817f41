"""Where asking stops: limits on calls, tokens, dollars and seconds, of a run or of one item of it.

A limit is held against what was spent plus an estimate of the next call, so it is never exceeded by more than the
error of that estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from privlm import errors

LIMITS = ("calls", "tokens", "usd", "seconds")


class BudgetExhausted(errors.BudgetExhausted):
    """The next call would exceed a budget.

    budget: the one that is exhausted; a caller who gave a budget of its own can tell it from the run's.
    """

    def __init__(self, budget: Budget, limit: str) -> None:
        super().__init__(f"{budget.name}.{limit}={getattr(budget, limit):g} is reached")
        self.budget = budget
        self.limit = limit


@dataclass(frozen=True)
class Spent:
    """What calls have cost. usd: 0 where no price is known."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
            self.seconds + other.seconds,
        )


class Budget:
    """Limits and what was spent under them. None: no limit. Not for several threads.

    name: of the limits in messages. spent: by earlier tries of the same run; its seconds go on from there.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tokens: int | None = None,
        usd: float | None = None,
        seconds: float | None = None,
        name: str = "budget",
        spent: Spent = Spent(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.calls, self.tokens, self.usd, self.seconds = calls, tokens, usd, seconds
        self.name = name
        self.spent = spent
        self._clock = clock
        self._began = clock()

    @classmethod
    def of(cls, limits: Any, *, spent: Spent = Spent(), name: str = "llm.budget") -> Budget:
        """The budget of a configuration (privlm.config.LLMBudget)."""
        return cls(**{limit: getattr(limits, limit) for limit in LIMITS}, spent=spent, name=name)

    @property
    def is_limited(self) -> bool:
        return any(getattr(self, limit) is not None for limit in LIMITS)

    def add(self, spent: Spent) -> None:
        """Counts what a call has cost; its seconds are counted by the clock."""
        self.spent += Spent(spent.calls, spent.prompt_tokens, spent.completion_tokens, spent.usd)

    def exceeded(self, reserved: Spent) -> str | None:
        """The limit that `reserved`, calls not yet paid for, would exceed; None when there is room."""
        total = self.spent + reserved
        elapsed = self.spent.seconds + self._clock() - self._began
        values = {"calls": total.calls, "tokens": total.tokens, "usd": total.usd}
        for limit, value in values.items():
            allowed = getattr(self, limit)
            if allowed is not None and value > allowed:
                return limit
        return "seconds" if self.seconds is not None and elapsed >= self.seconds else None
