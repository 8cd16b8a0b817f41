"""Passages in place of a written background: by words (BM25), or by embeddings of a sentence encoder.

pool: global, the distinct backgrounds of both splits; item, the passages that each question brings along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privlm.errors import UsageError
from privlm.models.encoder import build_encoder_classifier
from privlm.models.locate import locate_model
from privlm.models.schema import ModelConfig
from privlm.schema import defaults

from .questions import Question

BATCH = 32  # texts that pass the encoder at a time

Retriever = Callable[[Question], list[int]]
"""Places of the best passages for a question in its pool, the best one first."""


def pool_of(question: Question, shared: Sequence[str], task: Any) -> Sequence[str]:
    """What is searched for a question. shared: the pool of all questions.

    Raises UsageError for a question without passages where the pool is its own.
    """
    if task.retrieval_pool == "global":
        return shared
    if not question.passages:
        raise UsageError(
            f"{question.where}: no texts in field 'passages', which task.retrieval_pool=item searches; choose "
            "task.retrieval_pool=global"
        )
    return question.passages


def make_retriever(guide: str, shared: Sequence[str], task: Any, seed: int) -> Retriever:
    """guide: bm25 or dense. seed: of an encoder with random weights. Raises UsageError as `pool_of`."""
    score = (_bm25 if guide == "bm25" else _dense(task.encoder, seed))(
        shared if task.retrieval_pool == "global" else []
    )

    def retrieve(question: Question) -> list[int]:
        passages = pool_of(question, shared, task)
        scores = score(question.question, passages)
        best = sorted(range(len(passages)), key=lambda place: -scores[place])  # stable: of equal ones the first
        return best[: task.num_passages]

    return retrieve


Scorer = Callable[[str, Sequence[str]], Sequence[float]]
"""(question, passages) -> a score for each passage, higher is better."""


def _bm25(shared: Sequence[str]) -> Scorer:
    import bm25s

    def index(passages: Sequence[str]) -> Any:
        retriever = bm25s.BM25()
        tokens = bm25s.tokenize(list(passages), stopwords="en", return_ids=False, show_progress=False)
        retriever.index(tokens, show_progress=False)
        return retriever

    of_all = index(shared) if shared else None

    def score(question: str, passages: Sequence[str]) -> Sequence[float]:
        (tokens,) = bm25s.tokenize([question], stopwords="en", return_ids=False, show_progress=False)
        known = of_all if of_all is not None else index(passages)
        return [float(value) for value in known.get_scores(tokens)]

    return score


def _dense(name: str, seed: int) -> Callable[[Sequence[str]], Scorer]:
    """Cosine similarity of mean-pooled embeddings. name: of a configuration of the group `model`."""
    config = defaults(ModelConfig, "model", name)
    model, tokenizer = build_encoder_classifier(config, locate_model(config), num_labels=2, seed=seed)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                truncation=True, max_length=config.max_length, padding=True, return_tensors="pt",
            )  # fmt: skip
            parts.append(model.features(**{key: batch[key] for key in ("input_ids", "attention_mask")}))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def begin(shared: Sequence[str]) -> Scorer:
        of_all = embed(shared) if shared else None

        def score(question: str, passages: Sequence[str]) -> Sequence[float]:
            known = of_all if of_all is not None else embed(passages)
            similarities: np.ndarray = (known @ embed([question])[0]).numpy()
            return similarities.tolist()

        return score

    return begin
