"""The typed configuration: one dataclass per group, and the checks of meaning that types cannot express.

Types live here, values in configs/ (no default is written twice): a field without a value in the YAML is an error of
the YAML. `check` collects every problem of a composed configuration, so that a user mends them in one go. Imports
nothing heavy and nothing of Hydra: schemas are registered by privlm.cli.compose.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from privlm.errors import UsageError


@dataclass
class DataConfig:
    """A text-classification data set (configs/data)."""

    name: str = MISSING
    format: str = MISSING
    hub_id: str | None = MISSING
    hub_config: str | None = MISSING
    path: str | None = MISSING
    text_fields: list[str] = MISSING
    label_field: str = MISSING
    labels: list[str] = MISSING
    positive_label: str | None = MISSING
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    max_train_examples: int | None = MISSING
    licence: str = MISSING
    public_overlap: list[str] = MISSING


@dataclass
class ModelConfig:
    """A pretrained or random text encoder with a classification head (configs/model)."""

    name: str = MISSING
    hub_id: str | None = MISSING
    path: str | None = MISSING
    package: str | None = MISSING
    package_folder: str | None = MISSING
    sha256: dict[str, str] = MISSING
    random: dict[str, Any] | None = MISSING
    pooling: str = MISSING
    normalize_features: bool = MISSING
    head: str = MISSING
    dropout: float | None = MISSING
    max_length: int = MISSING
    pretrained_on: list[str] = MISSING


@dataclass
class AdapterConfig:
    """Which parameters train (configs/adapter)."""

    name: str = MISSING
    rank: int | None = MISSING
    alpha: float | None = MISSING
    dropout: float | None = MISSING
    target_modules: list[str] | None = MISSING
    train_head: bool = MISSING
    power_iterations: int | None = MISSING
    other_params: str | None = MISSING


@dataclass
class AuditConfig:
    """Canaries that an audited run trains with, and the guesses about them, all fixed beforehand."""

    canaries: str = MISSING
    num_canaries: int = MISSING
    guesses_in: int = MISSING
    guesses_out: int = MISSING
    confidence: float = MISSING
    seed: int = MISSING


@dataclass
class PrivacyConfig:
    """The privacy mechanism and its accountant (configs/privacy)."""

    mechanism: str = MISSING
    epsilon: float | None = MISSING
    delta: Any = MISSING  # a number, or the text 1/2N
    noise_multiplier: float | None = MISSING
    clipping_norm: float = MISSING
    clipping: str = MISSING
    sampling: str = MISSING
    accountant: str = MISSING
    order: int = MISSING
    strict: bool = MISSING
    adjacency: str = MISSING
    rng: str = MISSING
    allow_large_delta: bool = MISSING
    log_private_diagnostics: bool = MISSING
    audit: AuditConfig = MISSING


@dataclass
class TrainerConfig:
    """The training loop and the processes it runs in (configs/trainer)."""

    name: str = MISSING
    processes: int = MISSING
    batch_size: int = MISSING
    micro_batch_size: int = MISSING
    steps: int | None = MISSING
    epochs: float | None = MISSING
    optimizer: str = MISSING
    learning_rate: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING
    warmup_steps: int = MISSING
    max_grad_norm: float | None = MISSING
    precision: str = MISSING
    log_every: int = MISSING
    evaluate_every: int = MISSING
    checkpoint_every: int = MISSING
    keep_checkpoints: int = MISSING
    early_stop_patience: int | None = MISSING
    accelerate: dict[str, Any] = MISSING


@dataclass
class TrackerConfig:
    """Where metrics are repeated, beside metrics.jsonl (configs/tracker)."""

    name: str = MISSING
    project: str = MISSING
    mode: str = MISSING
    media: bool = MISSING


@dataclass
class Config:
    """One experiment. `task`, `model`, `data` and `adapter` hold the schema that the chosen YAML names."""

    scale: str = MISSING
    seed: int = MISSING
    runs: str = MISSING
    task: Any = MISSING
    model: Any = MISSING
    data: Any = MISSING
    adapter: Any = MISSING
    privacy: PrivacyConfig = MISSING
    trainer: TrainerConfig = MISSING
    tracker: TrackerConfig = MISSING


SCHEMAS: dict[str, dict[str, type]] = {
    "run": {"run": Config},
    "data": {"text_classification": DataConfig},
    "model": {"encoder": ModelConfig},
    "adapter": {"adapter": AdapterConfig},
    "privacy": {"privacy": PrivacyConfig},
    "trainer": {"trainer": TrainerConfig},
    "tracker": {"tracker": TrackerConfig},
}
"""Schema group -> name -> dataclass, as the YAML files name them: `/schema/<group>@_here_: <name>`."""

CHOICES: dict[str, tuple[str, ...]] = {
    "scale": ("smoke", "small", "paper"),
    "privacy.mechanism": ("none", "dp_sgd"),
    "privacy.clipping": ("flat", "per_layer", "automatic"),
    "privacy.sampling": ("poisson",),
    "privacy.accountant": ("pld", "rdp", "gdp", "edgeworth"),
    "privacy.adjacency": ("add_remove", "zero_out", "replace_one"),
    "privacy.rng": ("secure", "reproducible"),
    "trainer.optimizer": ("sgd", "adamw"),
    "trainer.schedule": ("constant", "linear", "cosine"),
    "trainer.precision": ("fp32", "bf16"),
    "trainer.name": ("single", "ddp"),
    "data.format": ("sms", "glue"),
    "adapter.name": ("head", "lora", "rgp", "full"),
    "adapter.other_params": ("train", "freeze"),
    "model.pooling": ("mean", "cls"),
    "model.head": ("linear", "mlp"),
    "tracker.name": ("none", "wandb", "tensorboard"),
    "tracker.mode": ("offline", "online", "disabled"),
}


@cache
def configs_dir() -> Path:
    """The folder of the shipped YAML files, in a wheel, an editable install or a plain checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no configs/config.yaml beside {package}: the installation is incomplete")


def defaults(schema: type, group: str, name: str, **changes: Any) -> Any:
    """The dataclass of a group with the values of its YAML, for use as a library: defaults(TrainerConfig, "trainer",
    "single").

    Raises UsageError for a change to a field that the schema does not know.
    """
    config = OmegaConf.structured(schema)
    for source in reversed(_chain(group, name)):
        config = OmegaConf.merge(config, source)
    try:
        return OmegaConf.to_object(OmegaConf.merge(config, changes))
    except OmegaConfBaseException as error:
        raise UsageError(f"{group}: {str(error).splitlines()[0]}") from error


def _chain(group: str, name: str) -> list[Any]:
    """A YAML and the ones of its own group that it starts from, the most special first."""
    content: Any = OmegaConf.load(configs_dir() / group / f"{name}.yaml")
    bases = [base for base in content.pop("defaults") if isinstance(base, str) and base != "_self_"]
    return [content, *(source for base in bases for source in _chain(group, base))]


def check(config: Any) -> list[str]:
    """Every problem of meaning in the core groups, one sentence each that names the field and the remedy."""
    return [
        *_choices(config),
        *_check_trainer(config.trainer),
        *_check_privacy(config.privacy, config.trainer),
        *_check_audit(config.privacy.audit),
        *_check_model(config),
    ]


def one_of(field: str, value: str, options: Iterable[str]) -> list[str]:
    """A problem if `value` is not one of `options`, with the nearest spelling."""
    options = list(options)
    if value in options:
        return []
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return [f"{field}: '{value}' is not one of {', '.join(options)}{hint}"]


def positive(field: str, value: float | None) -> list[str]:
    """A problem if `value` is given and not a finite number above zero."""
    if value is None or (math.isfinite(value) and value > 0):
        return []
    return [f"{field} must be greater than 0, not {value}"]


def not_negative(field: str, value: float | None) -> list[str]:
    if value is None or (math.isfinite(value) and value >= 0):
        return []
    return [f"{field} must not be negative or infinite: {value}"]


def is_private(config: Any) -> bool:
    """Whether the run trains under a privacy mechanism."""
    return config.privacy.mechanism != "none"


def _choices(config: Any) -> list[str]:
    problems = []
    for field, options in CHOICES.items():
        group, _, key = field.partition(".")
        value = config.get(group) if not key else (config.get(group) or {}).get(key)
        if value is not None:
            problems += one_of(field, value, options)
    return problems


def _check_trainer(trainer: Any) -> list[str]:
    problems = []
    for key in ("batch_size", "micro_batch_size", "steps", "epochs", "processes", "keep_checkpoints"):
        problems += positive(f"trainer.{key}", trainer[key])
    for key in ("log_every", "evaluate_every", "checkpoint_every"):
        problems += not_negative(f"trainer.{key}", trainer[key])
    problems += positive("trainer.learning_rate", trainer.learning_rate)
    problems += positive("trainer.max_grad_norm", trainer.max_grad_norm)
    problems += positive("trainer.early_stop_patience", trainer.early_stop_patience)
    for key in ("momentum", "weight_decay", "warmup_steps"):
        problems += not_negative(f"trainer.{key}", trainer[key])
    if (trainer.steps is None) == (trainer.epochs is None):
        problems.append("trainer.steps, trainer.epochs: give one of the two and set the other to null")
    if trainer.early_stop_patience is not None and not trainer.evaluate_every:
        problems.append("trainer.early_stop_patience needs trainer.evaluate_every above 0")
    if trainer.name == "single" and trainer.processes != 1:
        problems.append(f"trainer.processes={trainer.processes} needs trainer=ddp (trainer=single is one process)")
    return problems


def _check_privacy(privacy: Any, trainer: Any) -> list[str]:
    if privacy.mechanism == "none":
        return []
    problems = []
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        problems.append(
            "privacy.epsilon, privacy.noise_multiplier: give one of the two (the other is computed) "
            "and set the other to null"
        )
    if privacy.epsilon is not None and math.isinf(privacy.epsilon):
        problems.append("privacy.epsilon=inf promises nothing: use privacy=none")
    else:
        problems += positive("privacy.epsilon", privacy.epsilon)
    problems += positive("privacy.noise_multiplier", privacy.noise_multiplier)
    problems += positive("privacy.clipping_norm", privacy.clipping_norm)
    problems += _check_delta(privacy.delta)
    if privacy.order not in (0, 1, 2, 3):
        problems.append(f"privacy.order must be 0, 1, 2 or 3, not {privacy.order}")
    if trainer.max_grad_norm is not None:
        problems.append("trainer.max_grad_norm has no place under privacy: set privacy.clipping_norm instead")
    return problems


def _check_audit(audit: Any) -> list[str]:
    problems = one_of("privacy.audit.canaries", audit.canaries, ("none", "dirac", "mislabel", "random_tokens"))
    if audit.num_canaries < 10:
        problems.append(f"privacy.audit.num_canaries must be at least 10, not {audit.num_canaries}")
    if min(audit.guesses_in, audit.guesses_out) < 0 or audit.guesses_in + audit.guesses_out > audit.num_canaries:
        problems.append(
            f"privacy.audit.guesses_in={audit.guesses_in}, guesses_out={audit.guesses_out}: together at most "
            f"num_canaries={audit.num_canaries}, none negative"
        )
    if not 0 < audit.confidence < 1:
        problems.append(f"privacy.audit.confidence must lie between 0 and 1, not {audit.confidence}")
    return problems


def _check_delta(delta: Any) -> list[str]:
    if delta == "1/2N":
        return []
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        return [f"privacy.delta must be a number between 0 and 1, or 1/2N, not {delta!r}"]
    return []


def _check_model(config: Any) -> list[str]:
    model, adapter = config.model, config.adapter
    problems = []
    if model is not None and "max_length" in model:
        problems += positive("model.max_length", model.max_length)
    if adapter is not None and "rank" in adapter:
        problems += positive("adapter.rank", adapter.rank)
        problems += positive("adapter.power_iterations", adapter.power_iterations)
    return problems
