"""The trained classifier of a run at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from privlm.adapters.adapter import merge_adapter
from privlm.adapters.load import load_encoder_classifier
from privlm.config import Config
from privlm.data.encoding import tokenize
from privlm.data.text_classification import Split, load
from privlm.errors import PrivLMError, UsageError
from privlm.fit import load_trained
from privlm.metrics.estimate import Estimate
from privlm.models.encoder import EncoderClassifier
from privlm.models.loading import NO_PICKLE
from privlm.predictor import Row
from privlm.rundir import MODEL

from .measure import measure

SAMPLE = ("a short text", "another one, a little longer than the first", "numbers: 1 2 3")
"""Texts of nobody, on which an exported model must agree with the trained one."""

TOLERANCE = 1e-4  # of logits: adapters are merged into the weights


def predictor(config: Config, folder: Path) -> Classifier:
    """The model of the finished run in `folder`. Raises UsageError where its files are absent or have changed."""
    loaded = load_encoder_classifier(config.model, config.adapter, len(config.data.labels), config.seed)
    load_trained(loaded, folder / "stages" / "train" / MODEL)
    assert isinstance(loaded.model, EncoderClassifier)
    return Classifier(config, loaded.model.eval(), loaded.tokenizer)


class Classifier:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, model: EncoderClassifier, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.model = model
        self.tokenizer = tokenizer

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The label of each row with the probability of each class. Raises UsageError for a row without its texts."""
        batch: list[tuple[str, ...]] = []
        for number, row in enumerate(rows, start=1):
            batch.append(tuple(_text(row, field, number) for field in self.config.data.text_fields))
            if len(batch) == self.config.trainer.micro_batch_size:
                yield from self._answers(batch)
                batch = []
        if batch:
            yield from self._answers(batch)

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """The run's metrics on every evaluation split of a data set with the same labels."""
        if list(data.labels) != list(self.config.data.labels):
            raise UsageError(
                f"data.labels: the model knows {', '.join(self.config.data.labels)}, the data {', '.join(data.labels)}"
            )
        config = self.config
        splits = load(data).evaluation
        encoded = {name: tokenize(split, self.tokenizer, config.model.max_length) for name, split in splits.items()}
        return {name: measure(config, self.model, split) for name, split in encoded.items()}

    def export(self, folder: Path) -> None:
        """Writes `encoder/`, which transformers reads, with its tokenizer and the adapter merged into the weights;
        `head.safetensors`; and `classifier.json`: how the head is fed, and what its classes are called.

        Raises PrivLMError where what was written does not compute what was trained.
        """
        texts = [(text,) * len(self.config.data.text_fields) for text in SAMPLE]
        before = self._logits(texts)
        encoder = merge_adapter(self.model.encoder)
        encoder.save_pretrained(folder / "encoder")
        self.tokenizer.save_pretrained(folder / "encoder")
        save_file(self.model.head.state_dict(), folder / "head.safetensors")
        told = {name: getattr(self.model, name) for name in ("pooling", "normalize_features")}
        told |= {"head": self.config.model.head, "labels": list(self.config.data.labels)}
        (folder / "classifier.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        self.model.encoder = AutoModel.from_pretrained(folder / "encoder", **NO_PICKLE).eval()
        apart = float((self._logits(texts) - before).abs().max())
        if not apart <= TOLERANCE:
            raise PrivLMError(f"{folder}: the exported model is not the trained one: its logits are {apart:.3g} apart")

    def _answers(self, texts: Sequence[tuple[str, ...]]) -> Iterator[Row]:
        names = list(self.config.data.labels)
        for probabilities in self._logits(texts).softmax(dim=-1).tolist():
            best = max(range(len(names)), key=probabilities.__getitem__)
            yield {"label": names[best], "probabilities": dict(zip(names, probabilities, strict=True))}

    @torch.inference_mode()
    def _logits(self, texts: Sequence[tuple[str, ...]]) -> Tensor:
        columns = tuple(list(column) for column in zip(*texts, strict=True))
        split = Split(columns, np.zeros(len(texts), dtype=np.int64))
        batch = tokenize(split, self.tokenizer, self.config.model.max_length).batch(np.arange(len(texts)))
        del batch["labels"]
        return self.model(**batch)


def _text(row: Row, field: str, number: int) -> str:
    if not isinstance(row.get(field), str):
        raise UsageError(f"row {number}: no text in column '{field}'; the columns are {', '.join(row)}")
    return row[field]
