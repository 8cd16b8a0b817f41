"""Schema, checks and inputs of the task `fedit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.errors import UsageError
from privlm.federated.schema import is_federated
from privlm.models.schema import is_causal_lm
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, setting

JUDGES = ("none", "pairwise", "single")

EMBEDDED = "embedded"
"""task.questions of those that ship with the task."""


@dataclass
class Task(TaskConfig):
    """only_client, only_category: the arm `local`, which learns from these rows alone.

    num_generated: of the held-out rows, a category in turn; null: all.
    questions: that a judge compares answers to: a file, or `embedded`; null: none are answered.
    compare_with: the folder of a finished run that has answered the same questions.
    """

    only_client: str | None = MISSING
    only_category: str | None = MISSING
    train_on_inputs: bool = MISSING
    max_new_tokens: int = setting(above=0)
    num_generated: int | None = setting(at_least=0)
    questions: str | None = setting(same_run=True)  # its fingerprint stands for it
    judge: str = setting(options=JUDGES)
    judge_max_tokens: int = setting(above=0)
    judge_required: bool = setting(same_run=True)
    compare_with: str | None = setting(same_run=True)  # the fingerprint of its answers stands for it

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        return [*_check_judge(self, config), *_check_training(self, config)]


def _check_judge(task: Any, config: Any) -> list[str]:
    problems = []
    if task.judge == "none" and config.llm is not None:
        problems.append("llm: nobody is asked without a judge: choose task.judge=pairwise or single, or leave llm out")
    if task.judge == "none" and task.judge_required:
        problems.append("task.judge_required=true: there is no judge: choose task.judge=pairwise or single")
    if task.judge != "none" and config.llm is None:
        problems.append(f"task.judge={task.judge} needs a model to ask: choose llm=NAME (`privlm list llms`)")
    if task.judge != "none" and task.questions is None:
        problems.append(f"task.judge={task.judge} needs questions: task.questions={EMBEDDED} or a file")
    if task.judge == "pairwise" and task.compare_with is None:
        problems.append("task.judge=pairwise needs the answers of another run: task.compare_with=RUN")
    if task.judge == "none" and task.compare_with is not None:
        problems.append("task.compare_with names answers that nobody compares: choose task.judge=pairwise or single")
    return problems


def _check_training(task: Any, config: Any) -> list[str]:
    problems = []
    if config.adapter.name == "none" and is_private(config):
        problems.append("privacy=dp_sgd: adapter=none trains nothing, so that nothing is private; set privacy=none")
    if config.federated is None:
        problems.append("federated: choose federated=none, where one model learns from all rows, or a strategy")
    elif config.federated.name != "none":
        if config.adapter.name == "none":
            problems.append(f"federated={config.federated.name}: adapter=none trains nothing that clients could send")
        problems += [
            f"task.{field} is of an arm without a server: set federated=none"
            for field in ("only_client", "only_category")
            if task[field] is not None
        ]
    return problems


def contents(config: Any) -> dict[str, Content]:
    """Whether data and weights are what their names promise. Reads the data, so that what is wrong with them is told
    before anything is written.
    """
    from privlm.data.instructions import content_of
    from privlm.llm.local.weights import llm_contents
    from privlm.models import locate

    from .clients import deal
    from .splits import load

    data = load(config)
    if is_federated(config):
        deal(data.train, config)
    found = {"model": locate.content_of(config.model), "data": content_of(config.data)}
    return found | ({} if config.llm is None else llm_contents(config.llm))


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, all in one message."""
    from privlm.adapters.estimate import trained_model
    from privlm.data.locate import locate_instructions

    if not is_causal_lm(config.model):
        raise UsageError(
            f"model={config.model.name} is an encoder, and task=fedit trains a causal language model: model=smollm2"
        )
    return all_found(
        lambda: trained_model(config),
        lambda: {"data": locate_instructions(config.data).fingerprint},
        lambda: _questions(config.task),
        lambda: _judge(config),
        lambda: _manifest(config.federated),
    )


def _manifest(federated: Any) -> dict[str, str]:
    """Whose rows are whose, where a file says so."""
    if federated.manifest is None:
        return {}
    from privlm.federated.partition import fingerprint

    return {"federated.manifest": fingerprint(Path(federated.manifest))}


def _questions(task: Any) -> dict[str, str]:
    from .compared import fingerprint
    from .questions import read_questions

    found = {}
    if task.questions is not None:
        found["task.questions"] = read_questions(task.questions).fingerprint
    if task.compare_with is not None:
        found["task.compare_with"] = fingerprint(task.compare_with)
    return found


def _judge(config: Any) -> dict[str, str]:
    from privlm.llm.opening import llm_inputs

    return {} if config.llm is None else llm_inputs(config.llm)
