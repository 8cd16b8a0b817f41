"""Beam search for the continuation of one prompt, as transformers searches by default. Nothing is drawn.

Shapes: R rows, the beams of a prompt; V entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from privlm.llm.local.continuation import Reading
from privlm.llm.types import Answer


@dataclass(frozen=True)
class Beam:
    """A way to go on, and the log-probability of each of its tokens."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.logprobs, 0.0)

    @property
    def mean(self) -> float:
        return self.total / len(self.tokens)

    def then(self, token: int, logprob: float) -> Beam:
        return Beam((*self.tokens, token), (*self.logprobs, logprob))


class Searched:
    """Implements privlm.llm.local.continuation.Continuation: a row for each of the `num_beams` best beginnings.

    An end counts when it is among the `num_beams` best candidates of its step. The search is over when no beginning has
    a better mean log-probability than the worst of `num_beams` ends; the answer is the end of the best.
    """

    def __init__(self, reading: Reading) -> None:
        self.prompt = reading.prompt
        self.last = [reading.prompt.tokens[-1]]
        self._reading = reading
        self._num_beams = reading.sampling.num_beams
        self._going = [Beam()]
        self._ended: list[Beam] = []

    def go_on(self, logits_RV: Tensor) -> list[int]:
        going = []
        for place, (row, beam) in enumerate(self._candidates(logits_RV)):
            if self._reading.finish_reason(beam.tokens) is None:
                going.append((row, beam))
            elif place < self._num_beams:
                self._ended.append(beam)
        going = going[: self._num_beams]
        self._ended = sorted(self._ended, key=lambda beam: -beam.mean)[: self._num_beams]
        if len(self._ended) == self._num_beams and going and going[0][1].mean <= self._ended[-1].mean:
            going = []
        self._going = [beam for _, beam in going]
        self.last = [beam.tokens[-1] for beam in self._going]
        return [row for row, _ in going]

    def answer(self) -> Answer:
        best = self._ended[0]
        return self._reading.answer(best.tokens, best.logprobs)

    def _candidates(self, logits_RV: Tensor) -> list[tuple[int, Beam]]:
        """(row, its beam with one token more), the best first: enough for `num_beams` to go on where every stop token
        is among them.
        """
        logp_RV = logits_RV.log_softmax(-1)
        total_RV = logp_RV + torch.tensor([[beam.total] for beam in self._going], device=logp_RV.device)
        count = self._num_beams * max(2, 1 + len(self._reading.stop_tokens))
        places = total_RV.flatten().topk(min(count, total_RV.numel())).indices.tolist()
        steps = [divmod(place, total_RV.shape[1]) for place in places]
        return [(row, self._going[row].then(token, float(logp_RV[row, token]))) for row, token in steps]
