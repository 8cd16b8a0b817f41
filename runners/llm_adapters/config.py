"""Schema, checks and inputs of the task `llm_adapters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.data.schema import QUOTING
from privlm.errors import UsageError
from privlm.models.schema import is_causal_lm
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, setting

VERSIONS = ("own", "v1", "v2", "emnlp4")
STYLES = ("llm_adapters_verbatim", "alpaca", "chat")
SPLITS = ("v1_80_20", "full")
MATH_SETS = ("MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP", "mawps")
"""The released test sets, each in a folder of its name."""


@dataclass
class Task(TaskConfig):
    """version: of the paper, whose data and adapter settings the paper's recipe takes.

    base_run: the folder of a finished run that answered the same questions untrained (adapter=none).
    """

    version: str = setting(options=VERSIONS)
    prompt_style: str = setting(options=STYLES)
    prompt_mismatch: str = setting(options=("none", "upstream"))
    train_on_inputs: bool = MISSING
    max_new_tokens: int = setting(above=0)
    num_beams: int = setting(above=0)
    evaluate_base: bool = MISSING
    base_run: str | None = setting(same_run=True, instead_of=("evaluate_base",), not_with=("evaluate_base",))

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        problems = []
        if self.prompt_mismatch == "upstream" and self.prompt_style != "llm_adapters_verbatim":
            problems.append(
                f"task.prompt_mismatch=upstream is a fault of task.prompt_style=llm_adapters_verbatim, not of "
                f"{self.prompt_style}: choose that style, or task.prompt_mismatch=none"
            )
        if config.adapter.name == "none" and is_private(config):
            problems.append("privacy=dp_sgd: adapter=none trains nothing, so that nothing is private; set privacy=none")
        if config.llm is not None:
            problems.append("llm: task=llm_adapters asks nobody but the model it trains: choose it by model=NAME")
        return problems


@dataclass
class MathDataConfig:
    """Math questions to learn from, and sets of them to answer (configs/data/llm_adapters*.yaml)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    path: str | None = setting(same_run=True, not_with=("embedded",))  # its fingerprint stands for it
    train_path: str | None = setting(same_run=True)
    embedded: bool = setting(instead_of=("path",))
    train_file: str = MISSING
    test_sets: list[str] = setting(options=MATH_SETS)
    split: str = setting(options=SPLITS)
    allow_leak: bool = MISSING
    num_held_out: int = setting(at_least=0)
    max_train_examples: int | None = setting(above=0)
    num_test_questions: int | None = setting(above=0)
    aliases: dict[str, str] = MISSING
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    licence: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = []
        if not self.test_sets or len(set(self.test_sets)) < len(self.test_sets):
            problems.append("data.test_sets: name at least one set, and each once")
        return problems


SCHEMAS = {"data": {"math_questions": MathDataConfig}}


def contents(config: Any) -> dict[str, Content]:
    """Whether questions and weights are what their names promise. Reads the data, so that what is wrong with them is
    told before anything is written.
    """
    from privlm.models import locate

    from .math_data import content_of

    return {"model": locate.content_of(config.model), "data": content_of(config.data)}


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, all in one message."""
    from privlm.adapters.estimate import trained_model

    from .math_data import locate

    if not is_causal_lm(config.model):
        raise UsageError(
            f"model={config.model.name} is an encoder, and task=llm_adapters trains a causal language model: "
            "model=smollm2"
        )
    return all_found(
        lambda: trained_model(config),
        lambda: {"data": locate(config.data).fingerprint},
        lambda: _base_run(config.task.base_run),
    )


def _base_run(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    from .base_run import fingerprint

    return {"task.base_run": fingerprint(path)}
