"""The negative log-likelihood of a continuation after a context, under local weights.

Summed over the continuation's tokens alone. Only their positions pass the output layer; a context that several
continuations share is read once. The log-softmax is float32 whatever the weights are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from privlm.errors import UsageError
from privlm.llm.batching import Model, Rows, batches, output_layer_sees, pad_right
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
        start = self.start
        if start and context[: len(start)] == start:  # the text itself begins with it
            context = context[len(start) :]
        if not start and not context:
            start = [self._stand_in()]
        room = len(start) + len(context) if self.window is None else self.window + 1 - len(continuation)
        kept = [*start, *context]
        if len(kept) > room:
            num_start = min(len(start), room - 1)
            kept = [*start[:num_start], *context[len(context) - (room - num_start) :]]
            return Encoded(tuple(kept), tuple(continuation), truncated=True)
        return Encoded(tuple(kept), tuple(continuation), truncated=False)

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


def score(model: Model, requests: Sequence[Encoded], batch_tokens: int) -> Iterator[tuple[int, Score]]:
    """Yields (index, score), batch by batch.

    batch_tokens: tokens of a batch, padding included.
    """
    sharing: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        sharing[request.context].append(index)
    together = [group for group in sharing.values() if len(group) > 1]
    alone = sorted(set(range(len(requests))) - {index for group in together for index in group})
    parts = _score_together(model, requests, together, batch_tokens), _score_alone(model, requests, alone, batch_tokens)
    for part in parts:
        for index, sum_nll in part:
            request = requests[index]
            yield index, Score(sum_nll, len(request.continuation), request.truncated, len(request.context))


def _score_alone(
    model: Model, requests: Sequence[Encoded], indices: Sequence[int], batch_tokens: int
) -> Iterator[tuple[int, float]]:
    """Padding on the right needs no mask: a causal model does not look there."""
    lengths = [requests[index].num_read for index in indices]
    outputs = [len(requests[index].continuation) for index in indices]
    for batch in batches(lengths, batch_tokens, outputs):
        chosen = [indices[i] for i in batch]
        ids_BT = pad_right([requests[index].context + requests[index].continuation[:-1] for index in chosen], model)
        targets = [requests[index].continuation for index in chosen]
        row_N, column_N = _positions([len(requests[index].context) - 1 for index in chosen], targets)
        with output_layer_sees(model, row_N, column_N):
            logits_NV = model(input_ids=ids_BT, use_cache=False).logits[0]
        yield from zip(chosen, _sums(logits_NV, row_N, targets), strict=True)


def _score_together(
    model: Model, requests: Sequence[Encoded], groups: Sequence[list[int]], batch_tokens: int
) -> Iterator[tuple[int, float]]:
    """Reads each context once, which predicts the first tokens; then what follows these, a row each."""
    sizes = [sum(requests[index].num_read for index in group) for group in groups]
    for batch in batches(sizes, batch_tokens):
        read, logits_GV = Rows.read(model, [requests[groups[i][0]].context for i in batch])
        members = [(row, index) for row, i in enumerate(batch) for index in groups[i]]
        first_tokens = [requests[index].continuation[0] for _, index in members]
        first_M = -logits_GV.log_softmax(-1)[[row for row, _ in members], first_tokens].double()
        longer = []
        for (row, index), first_nll in zip(members, first_M.tolist(), strict=True):
            if len(requests[index].continuation) == 1:
                yield index, first_nll
            else:
                longer.append((row, index, first_nll))
        lengths = [requests[index].num_read for _, index, _ in longer]
        outputs = [len(requests[index].continuation) - 1 for _, index, _ in longer]
        for part in batches(lengths, batch_tokens, outputs):
            chosen = [longer[i] for i in part]
            targets = [requests[index].continuation[1:] for _, index, _ in chosen]
            row_N, column_N = _positions([0] * len(chosen), targets)
            ids_BT = pad_right([requests[index].continuation[:-1] for _, index, _ in chosen], model)
            with output_layer_sees(model, row_N, column_N):
                logits_NV = read.select([row for row, _, _ in chosen]).feed(model, ids_BT)[0]
            for (_, index, first_nll), sum_nll in zip(chosen, _sums(logits_NV, row_N, targets), strict=True):
                yield index, first_nll + sum_nll


def _positions(first_B: Sequence[int], targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(row, column) of the positions whose logits predict the targets: from column `first_B` on, one for each."""
    row_N = [row for row, target in enumerate(targets) for _ in target]
    column_N = [first + i for first, target in zip(first_B, targets, strict=True) for i in range(len(target))]
    return torch.tensor(row_N), torch.tensor(column_N)


def _sums(logits_NV: Tensor, row_N: Tensor, targets: Sequence[Sequence[int]]) -> list[float]:
    """Sum of -log p over each row's targets, in nats."""
    target_N = torch.tensor([token for target in targets for token in target], device=logits_NV.device)
    nll_N = torch.nn.functional.cross_entropy(logits_NV.float(), target_N, reduction="none").double().cpu()
    return torch.zeros(len(targets), dtype=torch.float64).index_add(0, row_N, nll_N).tolist()
