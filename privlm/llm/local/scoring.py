"""The negative log-likelihood of a continuation after a context, under local weights.

Summed over the continuation's tokens alone. Only their positions pass the output layer; a context that several
continuations share is read once. The log-softmax is float32 whatever the weights are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from privlm.errors import UsageError
from privlm.llm.local.architectures import NO_NUMBER, Model, logits_alone, reads_together
from privlm.llm.local.batching import Limits, Rows, batches, shared_beginnings, worth_sharing
from privlm.llm.types import Score, ScoreRequest


@dataclass(frozen=True)
class Encoded:
    """context: one token at least, BOS included where the tokenizer sets one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    truncated: bool

    @property
    def num_read(self) -> int:
        """Tokens that the model reads: the last one of the continuation is only predicted."""
        return len(self.context) + len(self.continuation) - 1


class Encoder:
    """Turns requests into tokens: both parts, BOS exactly once, and what does not fit into the window is left out of
    the context's beginning.

    start: what the tokenizer puts before a text by itself, BOS or nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, window: int | None) -> None:
        self.tokenizer = tokenizer
        self.window = window
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        complete = tokenizer("a")["input_ids"]
        self.start = complete[: complete.index(plain[0])]

    def __call__(self, request: ScoreRequest) -> Encoded:
        """Raises UsageError: the continuation is empty or alone longer than the window, or the context is empty and
        the tokenizer has no token that could stand for it.
        """
        context, continuation = self._split(request)
        if not continuation:
            raise UsageError(f"a continuation without tokens cannot be scored: {request.continuation!r}")
        if self.window is not None and len(continuation) > self.window:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens is longer than the context length, {self.window} tokens"
            )
        context = self._without_start(context)
        start = self.start if self.start or context else [self._stand_in()]
        room = len(start) + len(context) if self.window is None else self.window + 1 - len(continuation)
        kept = [*start, *context]
        if len(kept) > room:
            num_start = min(len(start), room - 1)
            kept = [*start[:num_start], *context[len(context) - (room - num_start) :]]
            return Encoded(tuple(kept), tuple(continuation), truncated=True)
        return Encoded(tuple(kept), tuple(continuation), truncated=False)

    def begin(self, text: str) -> list[int]:
        """Tokens of a text that stands at the beginning, BOS once; none for an empty text without BOS."""
        return [*self.start, *self._without_start(self.tokenizer(text, add_special_tokens=False)["input_ids"])]

    def _without_start(self, tokens: list[int]) -> list[int]:
        """The text itself may say what the tokenizer puts before it."""
        num_start = len(self.start)
        return tokens[num_start:] if tokens[:num_start] == self.start else tokens

    def _split(self, request: ScoreRequest) -> tuple[list[int], list[int]]:
        """Tokens of context and continuation, without special ones."""
        if request.border == "separate":
            parts = self.tokenizer([request.context, request.continuation], add_special_tokens=False)["input_ids"]
            return parts[0], parts[1]
        if not self.tokenizer.is_fast:
            raise UsageError("border=offsets needs a tokenizer that tells where its tokens lie (a fast one)")
        whole = self.tokenizer(
            request.context + request.continuation, add_special_tokens=False, return_offsets_mapping=True
        )
        starts = [start for start, _ in whole["offset_mapping"]]
        border = next((i for i, start in enumerate(starts) if start >= len(request.context)), len(starts))
        return whole["input_ids"][:border], whole["input_ids"][border:]

    def _stand_in(self) -> int:
        """What a first token is predicted from where the tokenizer begins no text with BOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise UsageError("an empty context cannot be scored: the tokenizer has neither a BOS nor an EOS token")


@torch.inference_mode()
def score(model: Model, requests: Sequence[Encoded], limits: Limits) -> Iterator[tuple[int, Score]]:
    """Yields (index, score), batch by batch; one by one where an architecture may not read rows together.

    Raises UsageError for a model that gives no number.
    """
    parts = _in_batches(model, requests, limits) if reads_together(model) else _one_by_one(model, requests)
    for index, sum_nll in parts:
        if math.isnan(sum_nll):
            raise UsageError(NO_NUMBER)
        request = requests[index]
        yield index, Score(sum_nll, len(request.continuation), request.truncated, len(request.context))


def _one_by_one(model: Model, requests: Sequence[Encoded]) -> Iterator[tuple[int, float]]:
    for index, request in enumerate(requests):
        num_context = len(request.context)
        logits_TV = logits_alone(model, request.context + request.continuation[:-1])[num_context - 1 :]
        target_T = torch.tensor(request.continuation, device=logits_TV.device)
        nll_T = torch.nn.functional.cross_entropy(logits_TV, target_T, reduction="none")
        yield index, float(nll_T.double().sum())


def _in_batches(model: Model, requests: Sequence[Encoded], limits: Limits) -> Iterator[tuple[int, float]]:
    by_context: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        by_context[request.context].append(index)
    single = [indices[0] for indices in by_context.values() if len(indices) == 1]
    several = [indices for indices in by_context.values() if len(indices) > 1]
    yield from _score_together(model, requests, several, limits)
    yield from _score_single(model, requests, single, limits)


def _score_single(
    model: Model, requests: Sequence[Encoded], indices: Sequence[int], limits: Limits
) -> Iterator[tuple[int, float]]:
    """Each context with its one continuation, in one pass."""
    for group, shared in shared_beginnings([requests[index].context[:-1] for index in indices]):
        members = [indices[i] for i in group]
        lengths = [requests[index].num_read for index in members]
        outputs = [len(requests[index].continuation) for index in members]
        for batch in batches(limits, lengths, [length - shared for length in lengths], outputs):
            chosen = [requests[members[i]] for i in batch]
            begun = worth_sharing([request.context[:-1] for request in chosen])
            rows = Rows.begin(model, chosen[0].context[:begun], len(chosen))
            pieces = [(request.context + request.continuation[:-1])[begun:] for request in chosen]
            first = [len(request.context) - 1 - begun for request in chosen]
            sums = _finish(model, rows, pieces, first, [request.continuation for request in chosen])
            yield from zip([members[i] for i in batch], sums, strict=True)


@dataclass(frozen=True)
class _Begun:
    """A request whose first token is scored. row: of its context."""

    index: int
    row: int
    first_nll: float
    continuation: tuple[int, ...]


def _score_together(
    model: Model, requests: Sequence[Encoded], by_context: Sequence[list[int]], limits: Limits
) -> Iterator[tuple[int, float]]:
    """Each context once, which predicts the first tokens of its continuations; then what follows these."""
    contexts = [requests[indices[0]].context for indices in by_context]
    for group, shared in shared_beginnings([context[:-1] for context in contexts]):
        lengths = [len(contexts[i]) for i in group]
        for batch in batches(limits, lengths, [length - shared for length in lengths], [1] * len(group)):
            chosen = [group[i] for i in batch]
            rows, logits_GV = Rows.of(model, [contexts[i] for i in chosen])
            logp_GV = logits_GV.log_softmax(-1)
            begun = [
                _Begun(index, row, -float(logp_GV[row, requests[index].continuation[0]]), requests[index].continuation)
                for row, i in enumerate(chosen)
                for index in by_context[i]
            ]
            yield from ((member.index, member.first_nll) for member in begun if len(member.continuation) == 1)
            longer = [member for member in begun if len(member.continuation) > 1]
            yield from _score_rest(model, rows, longer, limits)


def _score_rest(model: Model, rows: Rows, begun: Sequence[_Begun], limits: Limits) -> Iterator[tuple[int, float]]:
    read = [len(member.continuation) - 1 for member in begun]
    held = [int(rows.length_B[member.row]) + length for member, length in zip(begun, read, strict=True)]
    for batch in batches(limits, held, read, read):
        chosen = [begun[i] for i in batch]
        pieces = [member.continuation[:-1] for member in chosen]
        targets = [member.continuation[1:] for member in chosen]
        sums = _finish(model, rows.select([member.row for member in chosen]), pieces, [0] * len(chosen), targets)
        for member, sum_nll in zip(chosen, sums, strict=True):
            yield member.index, member.first_nll + sum_nll


def _finish(
    model: Model,
    rows: Rows,
    pieces: Sequence[Sequence[int]],
    first: Sequence[int],
    targets: Sequence[Sequence[int]],
) -> list[float]:
    """Sum of -log p, in nats, over each row's targets: the first is predicted at position `first` of the piece, the
    others follow.
    """
    row_N = torch.tensor([row for row, target in enumerate(targets) for _ in target])
    column_N = torch.tensor(
        [start + i for start, target in zip(first, targets, strict=True) for i in range(len(target))]
    )
    logits_NV = rows.finish(model, pieces, row_N, column_N)
    target_N = torch.tensor([token for target in targets for token in target], device=logits_NV.device)
    nll_N = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none").double().cpu()
    return torch.zeros(len(targets), dtype=torch.float64).index_add(0, row_N, nll_N).tolist()
