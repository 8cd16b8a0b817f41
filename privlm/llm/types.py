"""What a language model is asked and what it answers; the contract between backends, call record and callers.

No torch. A request is a value: equal requests have equal answers, except for `sample_index`, which tells samples of one
prompt apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from privlm.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Capability = Literal["generate", "logprobs", "beams", "top_k", "score", "hidden_states"]
"""generate: continue a prompt. logprobs: of the tokens it generates. beams, top_k: see Sampling. score: log-probability
of a given text. hidden_states: of a layer, for a given text."""

Pooling = Literal["last", "mean", "tokens"]
Norm = Literal["raw", "final"]

Status = Literal[
    "ok", "length", "empty", "refused",  # answers: served again from the call record
    "malformed", "timeout", "rate_limited", "server_error", "client_error", "budget",  # failures: asked again next time
]  # fmt: skip

ANSWERED: frozenset[str] = frozenset({"ok", "length", "empty", "refused"})
"""Statuses that the call record serves."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat; role: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How a continuation is drawn. temperature 0 is greedy; stop strings end it and are not part of it.

    num_beams: above 1, beam search of this width in place of greedy decoding: the continuation of the highest mean
        log-probability of a token, as transformers searches by default (length_penalty=1, early_stopping=False).
    top_k: draws are from the k most likely tokens, of these from the nucleus of top_p; None: from all.

    Raises UsageError for values that cannot be, and for beams at a temperature above 0: the search draws nothing.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    num_beams: int = 1
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise UsageError(f"num_beams must be above 0, not {self.num_beams}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be above 0, not {self.top_k}; None draws from all tokens")
        if self.num_beams > 1 and self.temperature > 0:
            raise UsageError(
                f"num_beams={self.num_beams} searches and draws nothing: set temperature=0 instead of "
                f"{self.temperature:g}, or num_beams=1"
            )


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt`: raw text for a base model, messages for a chat model.

    sample_index: tells apart draws of one prompt, also those of two items that happen to have the same prompt.
    logprobs: also return the log-probability of each generated token (needs the capability).
    item: what the caller calls it, for messages and for recorded answers without a prompt; not part of its identity.
    """

    prompt: str | tuple[Message, ...]
    sampling: Sampling
    sample_index: int = 0
    logprobs: bool = False
    item: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ScoreRequest:
    """The negative log-likelihood of `continuation` after `context`.

    border: how the token border between the two is found. separate: both are tokenised apart and concatenated; offsets:
    together, and the continuation begins at the first token that starts at or after the end of the context.
    """

    context: str
    continuation: str
    border: Literal["separate", "offsets"] = "separate"


Request = GenerateRequest | ScoreRequest


@dataclass(frozen=True)
class Answer:
    """What came back for a GenerateRequest.

    text: "" unless status is ok, length or refused. prompt_tokens, completion_tokens: of the server's `usage` or our
    tokenizer; estimated says that neither gave them. logprobs: natural log-probability of each generated token.
    cached: served from the call record, nothing was spent. detail: reason of a failure or of an empty answer, without
    prompts or keys. answered_by: the model by the name that the server gives it.
    """

    text: str
    status: Status
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    logprobs: tuple[float, ...] | None = None
    attempts: int = 1
    latency_ms: float = 0.0
    http_status: int | None = None
    detail: str | None = None
    cached: bool = False
    answered_by: str | None = None


@dataclass(frozen=True)
class Score:
    """What came back for a ScoreRequest: nats, summed over the continuation's tokens.

    truncated: the context lost tokens from its left to fit the window. context_tokens: those that were left.
    answered_by: as of an Answer.
    """

    sum_nll: float
    num_tokens: int
    truncated: bool = False
    context_tokens: int = 0
    cached: bool = False
    answered_by: str | None = None

    @property
    def avg_nll(self) -> float:
        """Nats per token; perplexity is its exponential."""
        return self.sum_nll / self.num_tokens


def likeliest(scores: Sequence[Score], by: str) -> int:
    """Place of the score whose `by` (avg_nll or sum_nll) is the lowest, of equal ones the first.

    Raises UsageError where one is not a number, or none is finite: nothing can be chosen by these.
    """
    values = [float(getattr(score, by)) for score in scores]
    if any(map(math.isnan, values)) or not any(map(math.isfinite, values)):
        raise UsageError(f"no option can be chosen: the model's scores are {', '.join(f'{v:g}' for v in values)}")
    return values.index(min(values))


Reply = Answer | Score


@runtime_checkable
class Backend(Protocol):
    """Where answers come from. Knows nothing of records and budgets.

    name: local, endpoint or replay. model: identity of who answers, part of the call record's key; for local weights
    it holds a hash of weights and adapter.
    parallel: how many requests `ask` may be given from how many threads at once (1: only one thread; the backend
        batches by itself).
    """

    name: str
    model: str
    capabilities: frozenset[str]
    parallel: int

    def check_ready(self) -> None:
        """One cheap probe. Raises ServiceError when a server does not answer, UsageError for what is not at hand."""

    def count_tokens(self, request: Request) -> int | None:
        """Tokens that the request puts in, None where no tokenizer is at hand."""

    def ask(self, requests: Sequence[Request]) -> Iterable[tuple[int, Reply]]:
        """Yields (index in `requests`, reply), each as soon as it is known, in any order.

        A failure of one request is an Answer with its status. Raises ServiceError when nobody answers any more, and
        UsageError for a request that can never be served (a continuation longer than the window).
        """

    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw"
    ) -> Tensor | list[Tensor]:
        """What a layer holds for given texts, float32 on the CPU; neither padding nor other texts are in it.

        layer: 0 is the embedding, 1 the first layer, -1 the last.
        pooling: last (token) or mean (over the tokens of a text): [num_texts, width]; tokens: a list with
            [num_tokens, width] of each text, BOS included where the tokenizer begins a text with it.
        norm: final applies the model's final norm, as its output layer would see the layer; raw is what the layer
            itself gives, of the last one too, which transformers lists with that norm applied.
        """

    def close(self) -> None: ...


OnReply = Callable[[int, Reply], None]
"""Called with (index of the request, reply) as each is stored, in the caller's thread."""
