"""Asks the items of a part; what is kept of each is a line of the stage."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from privlm.config import Config
from privlm.errors import BudgetExhausted, ServiceError
from privlm.llm.client import LanguageModel
from privlm.llm.program import ItemResult, Trace, run_programs
from privlm.rows import Keep

from .parts import Part

ITEMS_AT_ONCE = 32
"""What they ask at one time is one batch. It changes the speed, and the results by rounding alone."""


class Asking:
    """Asks the items of a part that no earlier try has finished, and keeps each result as it comes.

    exhausted: whether a budget of the run has ended it.
    """

    def __init__(self, part: Part, model: LanguageModel, trace: Trace, config: Config) -> None:
        self.part = part
        self.model = model
        self.trace = trace
        self.budget = config.task.budget
        self.exhausted = False

    def __call__(self, open_items: Mapping[str, tuple[Any, ...]], keep: Keep) -> None:
        """Raises ServiceError when items got no answer; the others are kept."""
        failed: list[str] = []
        before = time.monotonic()

        def on_done(name: str, result: ItemResult) -> None:
            nonlocal before
            if result.status == "failed":
                failed.append(result.error or "")
                return
            now = time.monotonic()
            keep(name.partition("/")[2], _line(result, now - before))
            before = now

        named = {f"{self.part.name}/{item}": given for item, given in open_items.items()}
        try:
            run_programs(
                self.part.program,
                named,
                self.model,
                on_done=on_done,
                trace=self.trace,
                budget=self.budget,
                width=ITEMS_AT_ONCE,
            )
        except BudgetExhausted:
            self.exhausted = True
        if failed:
            raise ServiceError(
                f"{self.part.name}: {len(failed)} of {len(self.part.items)} items got no answer ({failed[0]}); the "
                "others are kept, the same command asks these again"
            )


def _line(result: ItemResult, seconds: float) -> dict[str, Any]:
    """seconds: since the item that finished before; their sum is the wall time of the part, over all tries."""
    costs = {"calls": result.calls, "tokens": result.tokens, "cached": result.cached, "seconds": seconds}
    return {"status": result.status} | (result.value or {"answer": None}) | costs
