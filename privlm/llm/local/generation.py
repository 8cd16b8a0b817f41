"""Continuations under local weights, token by token, each prompt by the rules and the random numbers of its request.

A prompt leaves the batch when it is finished. The batch that a request falls into changes its logits by rounding alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from privlm.errors import UsageError
from privlm.llm.local.architectures import NO_NUMBER, Model, logits_alone, reads_together
from privlm.llm.local.batching import Limits, Rows, batches, shared_beginnings
from privlm.llm.local.beams import Searched
from privlm.llm.local.continuation import Continuation, Drawn, Prompt, Reading
from privlm.llm.types import Answer


@torch.inference_mode()
def generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    stop_tokens: Collection[int],
    limits: Limits,
) -> Iterator[tuple[int, Answer]]:
    """Yields (index, answer), each when it is finished; one after the other where an architecture may not read rows
    together.

    stop_tokens: that end a continuation and are not part of its text.

    Raises UsageError for a model that gives no number.
    """

    def continuation(prompt: Prompt) -> Continuation:
        kind = Searched if prompt.request.sampling.num_beams > 1 else Drawn
        return kind(Reading(prompt, stop_tokens, tokenizer))

    if not reads_together(model):
        for index, prompt in enumerate(prompts):
            yield index, _generate_alone(model, continuation(prompt))
        return
    for group, shared in shared_beginnings([prompt.tokens[:-1] for prompt in prompts]):
        members = [prompts[index] for index in group]
        for batch in batches(limits, [_held(one) for one in members], [len(one.tokens) - shared for one in members]):
            for index, answer in _generate_batch(model, [continuation(members[i]) for i in batch]):
                yield group[batch[index]], answer


def _held(prompt: Prompt) -> int:
    """Tokens of a prompt and all of its beams at the end."""
    sampling = prompt.request.sampling
    return (len(prompt.tokens) + sampling.max_tokens) * sampling.num_beams


def _generate_alone(model: Model, one: Continuation) -> Answer:
    """Each row is read anew for each token."""
    rows = [one.prompt.tokens]
    while kept := one.go_on(_numbers(torch.stack([logits_alone(model, row)[-1] for row in rows]))):
        rows = [(*rows[row], token) for row, token in zip(kept, one.last, strict=True)]
    return one.answer()


def _numbers(logits_RV: torch.Tensor) -> torch.Tensor:
    if logits_RV.isnan().any():
        raise UsageError(NO_NUMBER)
    return logits_RV


def _generate_batch(model: Model, continuations: list[Continuation]) -> Iterator[tuple[int, Answer]]:
    """A prompt is read once, however many beams go on from it."""
    going = dict(enumerate(continuations))
    rows, logits_BV = Rows.of(model, [one.prompt.tokens for one in continuations])
    while True:
        kept: list[int] = []
        read = 0
        for index, one in list(going.items()):
            num_rows = len(one.last)
            following = one.go_on(_numbers(logits_BV[read : read + num_rows]))
            kept += [read + row for row in following]
            read += num_rows
            if not following:
                del going[index]
                yield index, one.answer()
        if not going:
            return
        if kept != list(range(read)):
            rows.keep(kept)
        logits_BV = rows.read(model, [[token] for one in going.values() for token in one.last])
