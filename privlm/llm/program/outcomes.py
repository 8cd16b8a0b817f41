"""What a step gave, and how an item ends that does not come to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privlm.errors import PrivLMError
from privlm.llm.program.budget import ItemBudgetExhausted
from privlm.llm.types import Score


class CallFailed(PrivLMError):
    """A call ended without an answer (timeout, server error ...): the item is left for the next run."""


class MalformedError(PrivLMError):
    """The output of a step could not be read, at the last attempt either."""


class RefusedError(MalformedError):
    """The model refused to answer a step."""


ENDINGS = {
    ItemBudgetExhausted: "budget_exhausted",
    RefusedError: "refused",
    MalformedError: "malformed",
    CallFailed: "failed",
}


def ending(error: BaseException | None) -> str | None:
    """The status of an item that `error` ends, None for an error that ends the run."""
    return next((status for kind, status in ENDINGS.items() if isinstance(error, kind)), None)


@dataclass(frozen=True)
class StepResult:
    """What a generation gave.

    value: as parsed, None unless status is ok. status: ok, malformed or refused. text: the output as it came.
    error: why it could not be read. logprobs: of the generated tokens, if the step asks for them. finished: the model
    came to an end by itself, not at max_tokens.
    """

    step: str
    value: Any
    status: str
    text: str
    attempts: int
    error: str | None = None
    logprobs: tuple[float, ...] | None = None
    finished: bool = True

    def require(self) -> Any:
        """The value. Raises MalformedError or RefusedError where there is none, which ends the item so."""
        if self.status != "ok":
            raise (RefusedError if self.status == "refused" else MalformedError)(
                f"step '{self.step}': {self.error or self.status}"
            )
        return self.value


@dataclass(frozen=True)
class Chosen:
    """The most likely option: its text, its place, and the scores of all options in their order."""

    option: str
    index: int
    scores: tuple[Score, ...]
