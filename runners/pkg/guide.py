"""The guide: a causal language model that is tuned and writes backgrounds, with or without an eye for images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from privlm.adapters.load import load_causal_lm
from privlm.config import Config, is_private
from privlm.data.causal_lm import CausalSplit
from privlm.llm.local.backend import LocalBackend
from privlm.llm.types import Backend, GenerateRequest, Norm, Pooling, Reply, Request
from privlm.models.loaded import Loaded
from privlm.training.batches import TrainingData
from privlm.training.next_token import NextToken
from privlm.training.objective import Objective

from .aligning import encode
from .fusion import SeeingNextToken, add_fusions, seeing
from .images import Sight
from .questions import Question
from .questions_data import image_folder

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Guide:
    """sight: what it sees of images; None for a guide of texts."""

    config: Config
    loaded: Loaded
    objective: Objective
    sight: Sight | None

    def encode(self, questions: Sequence[Question]) -> tuple[TrainingData, CausalSplit]:
        """What the trainer reads, and its texts alone. Raises UsageError where no row is left."""
        kind, length = self.config.data.kind, self.config.model.max_length
        split = encode(questions, kind, self.loaded.tokenizer, length)
        if self.sight is None:
            return split, split
        learnt = [row for row in questions if row.background]
        return WithImages(split, [learnt[number] for number in split.kept], self.sight), split

    def backend(self, questions: Sequence[Question]) -> Backend:
        """The guide as it is now, to be asked about these questions."""
        texts = LocalBackend.of(self.loaded)
        return texts if self.sight is None else SeeingBackend(texts, self.loaded.model, questions, self.sight)

    def sample_of(self, question: Question) -> int:
        """Tells apart prompts of one text that come with different images."""
        return 0 if self.sight is None else self.sight.digest(question)


def load_guide(config: Config) -> Guide:
    """Untrained. Raises UsageError as `load_causal_lm` and `add_fusions` do."""
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    if config.task.vision is None:
        return Guide(config, loaded, NextToken(only_predicted=not is_private(config)), None)
    sight = Sight(config.task.vision, image_folder(config.data), config.seed)
    build_text, width = loaded.build, sight.width

    def build() -> nn.Module:
        model = build_text()
        add_fusions(model, width, config.seed)
        return model

    made_of = ["image fusion", loaded.digest, width, config.seed]
    return Guide(config, Loaded.of(build, made_of=made_of, tokenizer=loaded.tokenizer), SeeingNextToken(), sight)


@dataclass(frozen=True)
class WithImages:
    """A split whose rows come with images: what the trainer reads. Images are looked at batch by batch."""

    split: CausalSplit
    rows: list[Question]
    sight: Sight

    def __len__(self) -> int:
        return len(self.split)

    @property
    def lengths(self) -> np.ndarray:
        return self.split.lengths

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """That of the split, and image_features, float32 [B, P, D], has_image, float32 [B]."""
        features, has_image = self.sight.features([self.rows[number] for number in indices])
        return self.split.batch(indices) | {"image_features": features, "has_image": has_image}


class SeeingBackend:
    """See privlm.llm.types.Backend: asks a local model one request at a time, the image of its question in sight."""

    parallel = 1

    def __init__(self, texts: LocalBackend, model: Any, questions: Sequence[Question], sight: Sight) -> None:
        self.name, self.model = texts.name, texts.model
        self.capabilities = frozenset({"generate"})
        self._texts = texts
        self._seeing_model = model
        self._questions: Mapping[str, Question] = {question.id: question for question in questions}
        self._sight = sight

    @property
    def window(self) -> int | None:
        return self._texts.window

    def check_ready(self) -> None:
        self._texts.check_ready()

    def count_tokens(self, request: Request) -> int | None:
        return self._texts.count_tokens(request)

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        for number, request in enumerate(requests):
            assert isinstance(request, GenerateRequest)
            assert request.item is not None
            question = self._questions[request.item.partition(" ")[2]]
            features, has_image = self._sight.features([question])
            device = self._seeing_model.device
            with seeing(self._seeing_model, features.to(device), has_image.to(device)):
                ((_, reply),) = self._texts.ask([request])
            yield number, reply

    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw"
    ) -> Tensor | list[Tensor]:
        raise AssertionError("nobody asks the guide for hidden states")

    def close(self) -> None:
        self._texts.close()
