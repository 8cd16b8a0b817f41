"""The continuation of one prompt while it grows, drawn token by token; privlm.llm.local.beams searches for one.

Shapes: R rows of a prompt, V entries of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from privlm.llm.types import Answer, GenerateRequest, Status


@dataclass(frozen=True)
class Prompt:
    """A request and its tokens, one at least."""

    tokens: tuple[int, ...]
    request: GenerateRequest


class Continuation(Protocol):
    """What grows after a prompt, in one or more rows.

    last: the last token of each row; of the prompt before anything was read.
    """

    last: list[int]

    @property
    def prompt(self) -> Prompt: ...

    def go_on(self, logits_RV: Tensor) -> list[int]:
        """By one token, from the float32 logits after each row. Returns the rows that go on, a row once for each that
        follows from it; none at the end.
        """

    def answer(self) -> Answer:
        """At the end."""


class Reading:
    """Reads tokens after a prompt: where they end, and what their text is.

    stop_tokens: that end a continuation and are not part of its text.
    """

    def __init__(self, prompt: Prompt, stop_tokens: Collection[int], tokenizer: PreTrainedTokenizerBase) -> None:
        self.prompt = prompt
        self.sampling = prompt.request.sampling
        self.stop_tokens = stop_tokens
        self._tokenizer = tokenizer

    def finish_reason(self, tokens: Sequence[int]) -> str | None:
        """stop or length, None while more may come."""
        if tokens[-1] in self.stop_tokens or (self.sampling.stop and self._cut(tokens) is not None):
            return "stop"
        return "length" if len(tokens) >= self.sampling.max_tokens else None

    def answer(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Answer:
        text = self._cut(tokens)
        if text is None:
            text = self._decode(tokens)
        finish_reason = self.finish_reason(tokens)
        status: Status = "length" if finish_reason == "length" else "ok"
        return Answer(
            text=text,
            status=status if text else "empty",
            finish_reason=finish_reason,
            prompt_tokens=len(self.prompt.tokens),
            completion_tokens=len(tokens),
            logprobs=tuple(logprobs) if self.prompt.request.logprobs else None,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, read after the prompt's last one: alone, some tokenizers drop a space before it."""
        before = self.prompt.tokens[-1:]
        said = tokens[:-1] if tokens[-1] in self.stop_tokens else tokens
        return self._text([*before, *said])[len(self._text(before)) :]

    def _text(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _cut(self, tokens: Sequence[int]) -> str | None:
        """The text before the first stop string, None where there is none."""
        text = self._decode(tokens)
        ends = [end for end in (text.find(stop) for stop in self.sampling.stop) if end >= 0]
        return text[: min(ends)] if ends else None


class Drawn:
    """One row: greedy at temperature 0, else each token a draw that depends on the request alone."""

    def __init__(self, reading: Reading) -> None:
        self.prompt = reading.prompt
        self.last = [reading.prompt.tokens[-1]]
        self._reading = reading
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._random = np.random.default_rng(seed_of(reading.prompt.request))

    def go_on(self, logits_RV: Tensor) -> list[int]:
        (logits_V,) = logits_RV
        token = self._choose(logits_V)
        self._tokens.append(token)
        self.last = [token]
        if self.prompt.request.logprobs:
            self._logprobs.append(float(logits_V[token] - logits_V.logsumexp(0)))
        return [0] if self._reading.finish_reason(self._tokens) is None else []

    def answer(self) -> Answer:
        return self._reading.answer(self._tokens, self._logprobs)

    def _choose(self, logits_V: Tensor) -> int:
        """Greedy, or by the Gumbel-max trick: argmax of log p / temperature + Gumbel noise is a draw from it."""
        sampling = self.prompt.request.sampling
        if sampling.temperature == 0:
            return int(logits_V.argmax())
        noise_V = torch.from_numpy(self._random.gumbel(size=len(logits_V))).to(logits_V)
        allowed_V = nucleus(most_likely(logits_V / sampling.temperature, sampling.top_k), sampling.top_p)
        return int((allowed_V + noise_V).argmax())


def most_likely(logits_V: Tensor, top_k: int | None) -> Tensor:
    """Logits with all but the `top_k` highest at -inf; what equals the last of them stays."""
    if top_k is None or top_k >= len(logits_V):
        return logits_V
    return logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], -torch.inf)


def nucleus(logits_V: Tensor, top_p: float) -> Tensor:
    """Logits with those outside the smallest set of probability `top_p` at -inf (the most probable stays)."""
    if top_p >= 1:
        return logits_V
    sorted_V, order_V = logits_V.sort(descending=True)
    probability_V = sorted_V.softmax(0)
    outside_V = probability_V.cumsum(0) - probability_V >= top_p
    return logits_V.masked_fill(outside_V.scatter(0, order_V, outside_V), -torch.inf)


def seed_of(request: GenerateRequest) -> int:
    """Of all that makes a request another one, so that its draws depend on nothing else."""
    prompt = request.prompt if isinstance(request.prompt, str) else [[m.role, m.content] for m in request.prompt]
    content = json.dumps([prompt, request.sampling.seed, request.sample_index])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
