"""What a run of EW-Tune would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.data.text_classification import load, marks
from privlm.training.batches import num_steps

from .config import FEATURE_BATCH


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data = load(config.data)
    steps = num_steps(config.trainer, len(data.train))
    return {
        "training_examples": len(data.train),
        "steps": steps,
        "batch_size": config.trainer.batch_size,
        **forecast.privacy(config, dataset_size=len(data.train), steps=steps),
        **forecast.size(config, num_labels=len(data.labels), feature_batch=FEATURE_BATCH),
        "marks": marks(data, config.data, config.model.pretrained_on),
    }
