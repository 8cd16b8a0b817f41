"""Schema, checks and inputs of the task `pfedcr`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from privlm.content import Content
from privlm.errors import UsageError
from privlm.federated.schema import STRATEGIES, FederatedConfig, is_federated, not_on_nodes
from privlm.privacy.schema import is_private
from privlm.schema import TaskConfig, all_found, require_packages, setting

FAMILIES = ("crnn_small", "crnn")
ATTENTION = ("cbam", "se", "none")
NORMS = ("batch", "group")
SOURCES = ("rendered", "folder", "lmdb")
CONTENTS = ("mixed", "own")
DIFFICULTIES = ("clean", "medium", "hard")
ON_OOV = ("skip", "fail", "extend")
SERVER_FONTS = ("shared", "disjoint")
OUTSIDE_READERS = ("rapidocr", "none")
SHOWN = ("rendered", "all", "none")
ALPHABETS = ("small", "large")
"""data.alphabet of rendered lines; of own lines also `union` or a file."""

WARM_START, CENTRAL, GLOBAL, OUTSIDE = "warm_start", "central", "global", "rapidocr"
"""Splits of rows beside federated.name: of the model that all arms begin with, of a run without rounds, of the server's
model where clients have their own, and of a recogniser of others.
"""

METHOD = "pfedcr"
"""federated.name of the paper's own strategy (.strategy)."""


@dataclass
class WarmStart:
    """What the server trains before anything else, on lines of its own: characters and pairs, then longer lines."""

    short_images: int = setting(above=0)
    short_steps: int = setting(at_least=0)
    short_batch_size: int = setting(above=0)
    line_images: int = setting(above=0)
    line_steps: int = setting(at_least=0)
    line_batch_size: int = setting(above=0)
    learning_rate: float = setting(above=0)


@dataclass
class ServerSide:
    """What the server does between the rounds, and the fonts of all that it renders."""

    fonts: str = setting(options=SERVER_FONTS)
    virtual_lines: int = setting(above=0)
    virtual_epochs: int = setting(at_least=0)
    learning_rate: float = setting(above=0)


@dataclass
class Personalise:
    """What a client does after the last round: a local epoch, an average with the global model, its gates alone.

    attention_learning_rate: of the gates alone; null for that of the rounds.
    """

    epochs: float = setting(at_least=0)
    mix: float = setting(at_least=0, at_most=1)
    attention_epochs: float = setting(at_least=0)
    attention_learning_rate: float | None = setting(above=0, default=None)


@dataclass
class Task(TaskConfig):
    """start_run: the folder of a finished run whose warm start is taken, so that arms begin alike.

    few_shot: characters that a client has seen fewer times are measured apart. confidence: of readings against a label.
    """

    warm_start: WarmStart = MISSING
    start_run: str | None = setting(same_run=True)  # its fingerprint stands for it
    server: ServerSide = MISSING
    personalise: Personalise = MISSING
    few_shot: int = setting(at_least=0)
    confidence: float = setting(above=0, at_most=1)
    outside_reader: str = setting(options=OUTSIDE_READERS)
    show_lines: str = setting(options=SHOWN)

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        problems = []
        if config.llm is not None:
            problems.append("llm: task=pfedcr asks nobody; leave it out")
        if config.adapter is not None:
            problems.append("adapter: task=pfedcr trains all of its recogniser; leave it out")
        problems += _deals_out(config.federated) if is_federated(config) else []
        family = getattr(config.model, "family", None)
        if family not in FAMILIES:
            return [*problems, "model: task=pfedcr trains a recogniser of text lines: model=crnn_small or model=crnn"]
        if config.model.attention == "none" and self.personalise.attention_epochs:
            problems.append(
                f"task.personalise.attention_epochs={self.personalise.attention_epochs:g} trains gates that "
                "model.attention=none leaves out: set it to 0, or choose cbam or se"
            )
        if is_private(config) and config.model.norm == "batch":
            problems.append(
                "model.norm=batch couples the lines of a batch, which privacy rules out: choose model.norm=group (and "
                "a longer task.warm_start)"
            )
        return problems


def _deals_out(federated: Any) -> list[str]:
    """Of keys that would give rows to clients, where each line has its client."""
    asked = {"partition": "by_column", "num_clients": None, "manifest": None}
    return [
        f"federated.{key}={federated[key]} deals rows out, and each line of task=pfedcr has its client (data.clients): "
        f"leave it at {'null' if left is None else left}"
        for key, left in asked.items()
        if federated[key] != left
    ]


@dataclass
class LinesConfig:
    """Text lines of several clients (configs/data): rendered here, or a user's own."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    source: str = setting(options=SOURCES)
    path: str | None = setting(same_run=True)  # its fingerprint stands for it
    clients: list[str] = MISSING
    client_column: str | None = MISSING
    alphabet: str = MISSING
    simplified: str | None = MISSING
    on_oov: str = setting(options=ON_OOV)
    contents: str = setting(options=CONTENTS)
    difficulty: str = setting(options=DIFFICULTIES)
    inverted: bool = MISSING
    num_train_lines: int = setting(above=0)
    num_test_lines: int = setting(above=0)
    wrong_labels: float = setting(at_least=0, below=1)
    test_share: float = setting(above=0, below=1)
    seed: int = MISSING
    fonts: dict[str, str] = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = []
        if len(set(self.clients)) < len(self.clients):
            problems.append("data.clients: name each client once")
        if self.source != "rendered":
            if self.path is None:
                problems.append(
                    f"data.path: name the folder of the lines, data.path=FOLDER (data.source={self.source})"
                )
            if self.wrong_labels:
                problems.append("data.wrong_labels plants faults in rendered lines alone: set it to 0")
            if self.source == "lmdb" and self.client_column is not None:
                problems.append("data.client_column is of labels.tsv; of lmdb each client has a folder: set it to null")
            if self.on_oov == "extend" and is_private(config):
                problems.append("data.on_oov=extend tells all which characters the lines hold: choose skip or fail")
            return problems
        if self.path is not None:
            problems.append("data.path: rendered lines are made here; choose data=line_folder or data=line_lmdb")
        if self.alphabet not in ALPHABETS:
            problems.append(f"data.alphabet={self.alphabet}: rendered lines have {' or '.join(ALPHABETS)}")
        if not self.clients or set(self.clients) - set(_organisations()):
            problems.append(f"data.clients: name organisations of rendered lines: {', '.join(_organisations())}")
        return problems


def _organisations() -> tuple[str, ...]:
    from .contents import KINDS

    return tuple(KINDS)


@dataclass
class RecogniserConfig:
    """A convolutional-recurrent recogniser of text lines (configs/model)."""

    name: str = MISSING
    family: str = setting(options=FAMILIES)
    height: int = setting(at_least=16)
    max_width: int = setting(at_least=16)
    norm: str = setting(options=NORMS)
    attention: str = setting(options=ATTENTION)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        if self.family == "crnn" and self.height != 32:
            return [f"model.height={self.height}: the last convolution of model.family=crnn takes lines of 32 pixels"]
        return []


@dataclass
class PFedCRConfig(FederatedConfig):
    """Rounds by the strategy of this task; what it does besides is in task.server and task.personalise."""

    name: str = setting(options=(*STRATEGIES, METHOD))

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        if self.name == METHOD and config.task.name != "pfedcr":
            return [f"federated={METHOD} tunes and personalises a recogniser of text lines: choose task=pfedcr"]
        own = [not_on_nodes(METHOD)] if self.name == METHOD and self.engine == "flower" else []
        return FederatedConfig.check(self, config) + own  # composed, `self` is a node of the configuration


SCHEMAS = {
    "data": {"text_lines": LinesConfig},
    "model": {"recogniser": RecogniserConfig},
    "strategy": {"pfedcr": PFedCRConfig},  # over the schema that fedavg.yaml names, whose values pfedcr.yaml has
}


def contents(config: Any) -> dict[str, Content]:
    """Whether the lines are what their name promises. Reads them, so that what is wrong is told before anything is
    written.
    """
    from .data import content_of

    return {"data": content_of(config, _data(config)["data"])}


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what the run reads. Raises UsageError for what is not at hand, all in one message."""
    return all_found(
        lambda: require_packages("task=pfedcr", "PIL", extra="ocr"),
        lambda: _outside_reader(config.task),
        lambda: _data(config),
        lambda: _server(config),
        lambda: _start_run(config),
    )


def _outside_reader(task: Any) -> None:
    if task.outside_reader == "rapidocr":
        require_packages("task.outside_reader=rapidocr", "rapidocr", "onnxruntime", extra="ocr")


def _data(config: Any) -> dict[str, str]:
    from . import readers
    from .fonts import require_fonts

    data = config.data
    if not hasattr(data, "on_oov"):
        raise UsageError(f"data: '{data.name}' is data of another kind; task=pfedcr takes text lines: rendered_lines")
    if data.source == "rendered":
        from .rendered import client_fonts

        return {"data": _digest(require_fonts(client_fonts(data.clients), data.fonts).values())}
    if data.source == "lmdb":
        require_packages("data.source=lmdb", "lmdb", extra="ocr")
    return {"data": readers.fingerprint(data)}


def _server(config: Any) -> dict[str, str]:
    """Of the fonts that the server renders with; none where it renders nothing."""
    from .fonts import require_fonts
    from .rendered import SERVER_FONTS as BY_CHOICE

    if not renders(config) or not hasattr(config.data, "fonts"):  # other data are refused by `_data`
        return {}
    return {
        "task.server.fonts": _digest(require_fonts(BY_CHOICE[config.task.server.fonts], config.data.fonts).values())
    }


def renders(config: Any) -> bool:
    """Whether the server renders lines of its own."""
    start = config.task.warm_start
    is_warm = config.task.start_run is None and start.short_steps + start.line_steps > 0
    return is_warm or (is_pfedcr(config) and config.task.server.virtual_epochs > 0)


def is_pfedcr(config: Any) -> bool:
    """Whether the rounds are those of the paper's method, and not of a baseline."""
    return config.federated is not None and config.federated.name == METHOD


def _start_run(config: Any) -> dict[str, str]:
    if config.task.start_run is None:
        return {}
    from .start_run import fingerprint

    return {"task.start_run": fingerprint(config)}


def _digest(paths: Any) -> str:
    """Of font files: what they draw is what a run reads."""
    from hashlib import sha256

    from privlm.files import sha256_file

    return f"sha256:{sha256(''.join(sha256_file(Path(path)) for path in paths).encode()).hexdigest()}"
