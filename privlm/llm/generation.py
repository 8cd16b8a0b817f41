"""Continuations under local weights, drawn token by token, each row by the rules and the random numbers of its request.

A row leaves the batch when it is finished. The batch that a request falls into changes its logits by rounding alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from privlm.llm.batching import Limits, Model, Rows, batches, shared_beginnings
from privlm.llm.types import Answer, GenerateRequest, Status


@dataclass(frozen=True)
class Prompt:
    """A request and its tokens, one at least."""

    tokens: tuple[int, ...]
    request: GenerateRequest


@torch.inference_mode()
def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    stop_tokens: Collection[int],
    limits: Limits,
) -> Iterator[tuple[int, Answer]]:
    """Yields (index, answer), each when its row is finished.

    stop_tokens: that end a continuation and are not part of its text.
    """
    for group, shared in shared_beginnings([prompt.tokens[:-1] for prompt in prompts]):
        members = [prompts[index] for index in group]
        held = [len(prompt.tokens) + prompt.request.sampling.max_tokens for prompt in members]
        for batch in batches(limits, held, [len(prompt.tokens) - shared for prompt in members]):
            yield from _generate_batch(model, [Drawn(group[i], members[i], stop_tokens, tokenizer) for i in batch])


class Drawn:
    """The continuation of one prompt so far."""

    def __init__(
        self, index: int, prompt: Prompt, stop_tokens: Collection[int], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.sampling = prompt.request.sampling
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: str | None = None
        self._stop_tokens = stop_tokens
        self._tokenizer = tokenizer
        self._random = np.random.default_rng(seed_of(prompt.request))

    def draw(self, logits_V: Tensor) -> None:
        """Appends one token, drawn from float32 logits, and decides whether it was the last."""
        token = self._choose(logits_V)
        self.tokens.append(token)
        if self.prompt.request.logprobs:
            self.logprobs.append(float(logits_V[token] - logits_V.logsumexp(0)))
        if token in self._stop_tokens or (self.sampling.stop and self._cut() is not None):
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.sampling.max_tokens:
            self.finish_reason = "length"

    def answer(self) -> Answer:
        text = self._cut()
        if text is None:
            text = self._decode()
        status: Status = "length" if self.finish_reason == "length" else "ok"
        return Answer(
            text=text,
            status=status if text else "empty",
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt.tokens),
            completion_tokens=len(self.tokens),
            logprobs=tuple(self.logprobs) if self.prompt.request.logprobs else None,
        )

    def _choose(self, logits_V: Tensor) -> int:
        """Greedy, or by the Gumbel-max trick: argmax of log p / temperature + Gumbel noise is a draw from it."""
        if self.sampling.temperature == 0:
            return int(logits_V.argmax())
        noise_V = torch.from_numpy(self._random.gumbel(size=len(logits_V))).to(logits_V)
        return int((nucleus(logits_V / self.sampling.temperature, self.sampling.top_p) + noise_V).argmax())

    def _decode(self) -> str:
        """The text of the tokens, read after the prompt's last one: alone, some tokenizers drop a space before it."""
        before = list(self.prompt.tokens[-1:])
        tokens = self.tokens[:-1] if self.tokens and self.tokens[-1] in self._stop_tokens else self.tokens
        return self._read(before + tokens)[len(self._read(before)) :]

    def _read(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _cut(self) -> str | None:
        """The text before the first stop string, None where there is none."""
        text = self._decode()
        ends = [end for end in (text.find(stop) for stop in self.sampling.stop) if end >= 0]
        return text[: min(ends)] if ends else None


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


def _generate_batch(model: Model, drawn: list[Drawn]) -> Iterator[tuple[int, Answer]]:
    rows, logits_BV = Rows.of(model, [row.prompt.tokens for row in drawn])
    while True:
        for row, logits_V in zip(drawn, logits_BV, strict=True):
            row.draw(logits_V)
        going = [i for i, row in enumerate(drawn) if row.finish_reason is None]
        yield from ((row.index, row.answer()) for row in drawn if row.finish_reason is not None)
        if not going:
            return
        if len(going) < len(drawn):
            drawn = [drawn[i] for i in going]
            rows.keep(going)
        logits_BV = rows.read(model, [row.tokens[-1:] for row in drawn])
