"""Schema, checks and inputs of the task `causal`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, require_packages, setting

SUITES: dict[str, str] = {
    "tuebingen": "tuebingen",
    "neuropathic_pair": "neuropathic",
    "neuropathic_one_side": "neuropathic",
    "neuropathic_graph100": "neuropathic",
    "arctic": "arctic",
    "crass": "crass",
    "vignettes": "vignettes",
    "vignettes_lab": "vignettes",
    "normality": "normality",
    "memorisation": "tuebingen",
    "redaction": "tuebingen",
    "numeric": "numeric",
}
"""Suite -> the family of files that it reads (sources.FILES). numeric asks no model: data-driven baselines."""

PROMPTINGS = ("two", "agent", "single", "program")
RULES = ("strict", "upstream")
METHODS = ("anm", "igci", "reci")


@dataclass
class Numeric:
    """Data-driven baselines on the numbers behind the Tuebingen pairs."""

    methods: list[str] = setting(options=METHODS)
    max_points: int = setting(above=0)
    seconds: float = setting(above=0)


@dataclass
class Discovery:
    """The answers to neuropathic_pair as background knowledge of the PC algorithm, on simulated data."""

    num_nodes: int = setting(at_least=0)
    num_samples: int = setting(above=0)
    alpha: float = setting(above=0, below=1)


@dataclass
class Task(TaskConfig):
    """suite: a name or a list of names."""

    suite: Any = setting(options=SUITES)
    prompting: str = setting(options=PROMPTINGS)
    chat: bool = MISSING
    system: str = MISSING
    temperature: float | None = setting(at_least=0)
    max_tokens: int | None = setting(above=0)
    n_samples: int = setting(above=0)
    num_items: int | None = setting(above=0)
    swap_options: bool = MISSING
    parser: str = setting(options=RULES)
    credit: str = setting(options=RULES)
    numeric: Numeric = MISSING
    discovery: Discovery = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        problems = [*_check_suites(self), *_check_program(config)]
        if self.n_samples > 1 and self.temperature == 0:
            problems.append("task.n_samples above 1 needs task.temperature above 0: at 0 all samples are the same")
        if config.llm is None:
            problems.append("llm: task=causal needs somebody to ask; choose llm=NAME (`privlm list llms`)")
        if is_private(config):
            problems.append(
                "privacy=dp_sgd: task=causal asks a model and trains nothing, so there is nothing to protect"
            )
        if config.model is not None or config.adapter is not None:
            problems.append("task=causal trains no model and no adapter: choose whom to ask by llm=NAME")
        return problems


@dataclass
class CausalData:
    """Where the files of the suites lie (configs/data/causal.yaml)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    path: str | None = setting(same_run=True)  # its fingerprint stands for it
    licence: str = MISSING


SCHEMAS = {"data": {"causal": CausalData}}


def suite_names(task: Any) -> list[str]:
    """`task.suite` as a list."""
    return [task.suite] if isinstance(task.suite, str) else list(task.suite)


def _check_suites(task: Any) -> list[str]:
    names = suite_names(task)
    problems = []
    if not names or len(set(names)) < len(names):
        problems.append("task.suite: name at least one suite, and each once")
    if "numeric" in names and not task.numeric.methods:
        problems.append(f"task.numeric.methods: name at least one of {', '.join(METHODS)} for task.suite=numeric")
    if task.discovery.num_nodes and "neuropathic_pair" not in names:
        problems.append("task.discovery needs task.suite=neuropathic_pair, whose answers it uses; or num_nodes=0")
    return problems


def _check_program(config: Any) -> list[str]:
    task, problems = config.task, []
    if task.prompting == "program" and config.llm is not None and config.llm.backend == "replay":
        problems.append("task.prompting=program asks what nobody has recorded: use another llm than replay")
    if task.prompting == "program" and (task.n_samples > 1 or not task.chat):
        problems.append("task.prompting=program judges each pair once, by messages: task.n_samples=1 task.chat=true")
    return problems


def contents(config: Any) -> dict[str, Content]:
    """Whether files and weights are what their names promise."""
    from privlm.llm.local.weights import llm_contents

    from .sources import Sources

    names = suite_names(config.task)
    data = Sources(config.data.path).content(config.data, {SUITES[name] for name in names})
    return {"data": data} | (llm_contents(config.llm) if names != ["numeric"] else {})


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of the files of the suites and of the language model.

    Raises UsageError for what is not at hand, data and model in one message.
    """
    from privlm.llm.opening import llm_inputs

    from .sources import Sources

    names = suite_names(config.task)
    return all_found(
        lambda: _packages(config.task),
        lambda: {"data": Sources(config.data.path).fingerprint({SUITES[name] for name in names})},
        lambda: llm_inputs(config.llm) if names != ["numeric"] else {},
    )


def _packages(task: Any) -> None:
    """Raises UsageError where a part of the task needs a package that is absent."""
    if "numeric" in suite_names(task) and "anm" in task.numeric.methods:
        require_packages("task.numeric.methods: anm", "causal-learn", extra="llm")
    if task.discovery.num_nodes:
        require_packages("task.discovery", "causal-learn", extra="llm")
