"""Where asking stops: limits on calls, tokens, dollars and seconds.

A limit is held against what was spent plus an estimate of the calls to come, so it is never exceeded by more than the
error of that estimate.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

from privlm import errors

LIMITS = ("calls", "tokens", "usd", "seconds")


class BudgetExhausted(errors.BudgetExhausted):
    """The next call would exceed `limit`, one of calls, tokens, usd and seconds. role: whose budget, "" for the only
    one.
    """

    def __init__(self, limit: str, allowed: float, role: str = "") -> None:
        super().__init__(f"{f'{role}: ' if role else ''}llm.budget.{limit}={allowed:g} is reached")
        self.limit = limit


@dataclass(frozen=True)
class Spent:
    """What calls have cost. usd: 0 where no price is known. seconds: of asking."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Budget:
    """Limits, and what was spent under them. None: no limit.

    spent: by earlier tries of the same run. role: whose budget it is, for messages.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        tokens: int | None = None,
        usd: float | None = None,
        seconds: float | None = None,
        spent: Spent = Spent(),
        role: str = "",
    ) -> None:
        limits = zip(LIMITS, (calls, tokens, usd, seconds), strict=True)
        self.limits = {name: limit for name, limit in limits if limit is not None}
        self.spent = spent
        self._role = role

    @classmethod
    def of(cls, limits: Any, *, spent: Spent = Spent(), role: str = "") -> Budget:
        """The budget of a configuration (privlm.llm.schema.LLMBudget)."""
        return cls(**{limit: getattr(limits, limit) for limit in LIMITS}, spent=spent, role=role)

    def exceeded(self, reserved: Spent) -> BudgetExhausted | None:
        """What is to be raised instead of spending `reserved` more; None when there is room."""
        total = self.spent + reserved
        for name, allowed in self.limits.items():
            value = getattr(total, name)
            if value > allowed or (name == "seconds" and value >= allowed):
                return BudgetExhausted(name, allowed, self._role)
        return None
