"""What a step reads of an image: its latents, its two prompts as tokens, and the vector of its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privlm.training.batches import Indices, TrainingData

from .vectors import Vectors


@dataclass(frozen=True)
class Tokens:
    """Of N prompts. ids: int64 [N, L]. mask: bool [N, L], false at padding. num_cut: prompts longer than that."""

    ids: Tensor
    mask: Tensor
    num_cut: int

    @classmethod
    def of(cls, opened: Any, prompts: Sequence[str]) -> Tokens:
        """As the pipeline reads them. opened: an OpenedPipeline."""
        tokenizer, length = opened.tokenizer, opened.max_length
        settings = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        found = tokenizer(list(prompts), **settings)
        num_cut = sum(len(ids) > length for ids in tokenizer(list(prompts), verbose=False)["input_ids"])
        return cls(found.input_ids, found.attention_mask.bool(), num_cut)


@dataclass(frozen=True)
class SurData:
    """See privlm.training.batches.TrainingData; of the sentences and keywords of the images, in their order.

    latents: gives `latents` of the same images. keywords, vectors: None where the losses read none.
    """

    latents: TrainingData
    sentences: Sequence[str]
    narrative: Tokens
    keywords: Tokens | None = None
    vectors: Vectors | None = None

    @property
    def lengths(self) -> None:
        """All prompts are padded to one length."""
        return

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """Those of SurObjective, with token ids in place of states."""
        rows = torch.from_numpy(indices)
        found = dict(self.latents.batch(indices))
        found |= {"input_ids": self.narrative.ids[rows], "text_mask": self.narrative.mask[rows]}
        if self.keywords is not None:
            found |= {"keyword_ids": self.keywords.ids[rows], "keyword_mask": self.keywords.mask[rows]}
        if self.vectors is not None:
            texts = [self.sentences[int(i)] for i in indices]
            length = self.narrative.ids.shape[1]
            found["vectors"], found["vector_mask"] = self.vectors.batch(texts, length)
        return found
