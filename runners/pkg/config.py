"""Schema, checks and inputs of the task `pkg`."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.data.schema import QUOTING
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.models.schema import is_causal_lm
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, require_packages, setting

GUIDES = ("none", "cot", "genread", "bm25", "dense", "pkg", "gold")
"""Where the background of a question comes from; rows of the table."""

ASKED = ("cot", "genread")
"""Guides whose texts the black box writes itself."""

RETRIEVED = ("bm25", "dense")

KINDS = ("claim", "table", "medical", "science", "question")
"""What is asked: FM2's claims, NQ-Table, MedMC-QA, ScienceQA, or questions of somebody's own."""

TINY_VISION = "tiny"
"""task.vision of a random model in place of a folder."""

ENCODERS = ("minilm", "tiny")
POOLS = ("global", "item")
ON_LEAK = ("block", "redact", "warn")


@dataclass
class Task(TaskConfig):
    """guides: each is a row, on the same questions.

    vision: null, tiny, or the folder of a CLIP vision model whose features the guide sees.
    guide_run: the folder of a finished run, on the same data, whose aligned guide is used instead of aligning one.
    """

    guides: list[str] = setting(options=GUIDES)
    guide_run: str | None = setting(same_run=True)  # the fingerprint of its guide stands for it
    background_max_tokens: int = setting(above=0)
    answer_max_tokens: int = setting(above=0)
    chat: bool = MISSING
    retrieval_pool: str = setting(options=POOLS)
    num_passages: int = setting(above=0)
    encoder: str = setting(options=ENCODERS)
    vision: str | None = setting(same_run=True)  # its fingerprint stands for it
    private_mode: bool = MISSING
    audit_outbound: bool = setting(same_run=True)  # writes what is sent, changes nothing of it
    on_leak: str = setting(options=ON_LEAK)

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        problems = []
        if not self.guides or len(set(self.guides)) < len(self.guides):
            problems.append("task.guides: name at least one guide, and each once")
        if config.llm is None:
            problems.append("llm: task=pkg needs a black box to ask; choose llm=NAME (`privlm list llms`)")
        is_trained = "pkg" in self.guides and self.guide_run is None
        if is_private(config) and not is_trained:
            problems.append(
                "privacy: only the guide is trained; add pkg to task.guides, without task.guide_run, or choose "
                "privacy=none"
            )
        if self.vision is not None and "pkg" not in self.guides:
            problems.append("task.vision is the eye of a guide that nothing asks: add pkg to task.guides")
        if self.guide_run is not None and "pkg" not in self.guides:
            problems.append("task.guide_run names a guide that nothing asks: add pkg to task.guides")
        return problems


@dataclass
class GuidedQuestions:
    """Questions with the backgrounds to learn, and questions to answer (configs/data)."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    kind: str = setting(options=KINDS)
    path: str | None = setting(same_run=True, not_with=("embedded",))  # its fingerprint stands for it
    embedded: bool = setting(instead_of=("path",))
    obtain: str = MISSING
    train_split: str = MISSING
    test_split: str = MISSING
    max_train_examples: int | None = setting(above=0)
    num_test_questions: int | None = setting(above=0)
    allow_leak: bool = MISSING
    aliases: dict[str, str] = MISSING
    encoding: str | None = MISSING
    quoting: str | None = setting(options=QUOTING)
    licence: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        return ["data.test_split must not be data.train_split"] if self.train_split == self.test_split else []


SCHEMAS = {"data": {"guided_questions": GuidedQuestions}}


def contents(config: Any) -> dict[str, Content]:
    """Whether data and weights are what their names promise. Reads the data, so that what is wrong with them is told
    before anything is written.
    """
    from privlm.llm.local.weights import llm_contents
    from privlm.models import locate

    from .questions_data import content_of

    found = {"data": content_of(config.data), **llm_contents(config.llm)}
    return found | ({"model": locate.content_of(config.model)} if "pkg" in config.task.guides else {})


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, all in one message."""
    from privlm.llm.opening import llm_inputs

    from .questions_data import locate

    return all_found(
        lambda: _guide(config),
        lambda: llm_inputs(config.llm),
        lambda: {"data": locate(config.data).fingerprint},
        lambda: _retrieval(config.task),
        lambda: _vision(config),
    )


def _guide(config: Any) -> dict[str, str]:
    from privlm.adapters.estimate import trained_model

    from .guide_run import fingerprint

    if "pkg" not in config.task.guides:
        return {}
    if not is_causal_lm(config.model):
        raise UsageError(f"model={config.model.name} is an encoder, and the guide writes text: model=smollm2")
    found = trained_model(config)
    return found | ({} if config.task.guide_run is None else {"task.guide_run": fingerprint(config.task.guide_run)})


def _vision(config: Any) -> dict[str, str]:
    """Of the vision model and of all images."""
    if config.task.vision is None:
        return {}
    require_packages("task.vision", "PIL", extra="llm")
    from .images import images_fingerprint
    from .questions_data import image_folder, load

    data, name = load(config.data), config.task.vision
    found = {"task.vision images": images_fingerprint([*data.train, *data.test], image_folder(config.data))}
    if name == TINY_VISION:
        return found | {"task.vision": name}
    folder = Path(name).expanduser()
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if len(weights) < 2:
        raise UsageError(f"task.vision: {name} is neither `{TINY_VISION}` nor a folder with config.json and weights")
    return found | {"task.vision": sha256("".join(map(sha256_file, weights)).encode()).hexdigest()}


def _retrieval(task: Any) -> dict[str, str]:
    from privlm.models.locate import locate_model
    from privlm.models.schema import ModelConfig
    from privlm.schema import defaults

    if "bm25" in task.guides:
        require_packages("bm25 of task.guides", "bm25s", extra="llm")
    if "dense" not in task.guides:
        return {}
    return {"task.encoder": locate_model(defaults(ModelConfig, "model", task.encoder)).fingerprint}
