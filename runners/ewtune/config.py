"""Schema and inputs of the task `ewtune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privlm.content import Content
from privlm.errors import UsageError
from privlm.models.schema import is_causal_lm
from privlm.schema import TaskConfig, setting

FEATURE_BATCH = 32
"""Texts that pass the frozen encoder at a time when their features are cached (adapter=head)."""


@dataclass
class Task(TaskConfig):
    """setting: the published budget and batch sizes that the paper's recipe takes."""

    setting: str = setting(options=("own", "rgp", "li"))


def contents(config: Any) -> dict[str, Content]:
    """Whether data and weights are what their names promise; what `inputs` found is read for it."""
    from privlm.data import text_classification
    from privlm.models import locate

    return {
        "model": locate.content_of(config.model),
        "data": text_classification.content_of(config.data),
    }


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads, found before anything heavy is imported.

    Raises UsageError for what is not at hand, model and data in one message.
    """
    from privlm.adapters.estimate import trained_model
    from privlm.data.locate import locate
    from privlm.schema import all_found

    if is_causal_lm(config.model):
        raise UsageError(f"model={config.model.name} is a causal language model, and task=ewtune trains an encoder")
    return all_found(
        lambda: trained_model(config),
        lambda: {"data": locate(config.data).fingerprint},
    )
