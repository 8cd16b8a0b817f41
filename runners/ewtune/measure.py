"""What is measured of a classifier: accuracy, and F1 where the data set has a positive class."""

from __future__ import annotations

from typing import Any

from torch import nn

from privlm.config import Config
from privlm.data.encoding import EncodedSplit
from privlm.data.features import FeatureSplit
from privlm.metrics.classification import accuracy, f1
from privlm.training.classification import predict


def measure(config: Config, model: nn.Module, split: EncodedSplit | FeatureSplit) -> dict[str, Any]:
    """Metric -> Estimate."""
    predictions = predict(model, split, config.trainer.micro_batch_size)
    measured = {"accuracy": accuracy(predictions, split.labels)}
    if config.data.positive_label is not None:
        positive = list(config.data.labels).index(config.data.positive_label)
        measured["f1"] = f1(predictions, split.labels, positive)
    return measured
