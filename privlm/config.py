"""The typed configuration: one dataclass per group.

Types live here, values in configs/ (no default is written twice): a field without a value in the YAML is an error of
the YAML. What types cannot express is checked by privlm.checks. Imports nothing heavy and nothing of Hydra: schemas are
registered by privlm.cli.compose.
"""

from __future__ import annotations

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
    aliases: dict[str, str] = MISSING
    labels: list[str] = MISSING
    positive_label: str | None = MISSING
    train_split: str = MISSING
    eval_splits: list[str] = MISSING
    max_train_examples: int | None = MISSING
    split_sizes: dict[str, int] = MISSING
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
    learning_rates: dict[str, float] = MISSING
    final_learning_rate: float | None = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING
    warmup_steps: int = MISSING
    warmup_share: float | None = MISSING
    max_grad_norm: float | None = MISSING
    precision: str = MISSING
    deterministic: bool | None = MISSING
    log_every: int = MISSING
    evaluate_every: int = MISSING
    checkpoint_every: int = MISSING
    keep_checkpoints: int = MISSING
    early_stop_patience: int | None = MISSING
    early_stop_metric: str | None = MISSING
    early_stop_mode: str | None = MISSING
    restore_best: bool | None = MISSING
    accelerate: dict[str, Any] = MISSING


@dataclass
class LLMBudget:
    """Where asking stops cleanly; null: no limit. What the call record answers costs nothing."""

    calls: int | None = MISSING
    tokens: int | None = MISSING
    usd: float | None = MISSING
    seconds: float | None = MISSING


@dataclass
class LLMConfig:
    """Whoever is asked (configs/llm), and how the answers are kept. Each backend adds its own fields."""

    name: str = MISSING
    backend: str = MISSING
    context_length: int | None = MISSING
    cache: str = MISSING
    cache_dir: str | None = MISSING
    trace: str = MISSING
    budget: LLMBudget = MISSING


@dataclass
class LocalLLMConfig(LLMConfig):
    """A causal language model of transformers in this process."""

    hub_id: str | None = MISSING
    path: str | None = MISSING
    adapter: str | None = MISSING
    package: str | None = MISSING
    package_folder: str | None = MISSING
    gguf_file: str | None = MISSING
    sha256: dict[str, str] = MISSING
    random: dict[str, Any] | None = MISSING
    dtype: str = MISSING
    device: str = MISSING
    batch_tokens: int = MISSING


@dataclass
class Timeouts:
    """Seconds."""

    connect: float = MISSING
    read: float = MISSING


@dataclass
class Retries:
    """max_attempts: of one call, the first included; max_wait: seconds, also the longest Retry-After obeyed."""

    max_attempts: int = MISSING
    max_wait: float = MISSING


@dataclass
class Price:
    """US dollars for a million tokens; null: unknown, and then no cost is computed."""

    input: float | None = MISSING
    output: float | None = MISSING


@dataclass
class EndpointLLMConfig(LLMConfig):
    """A server that speaks the OpenAI protocol. api_key_env names an environment variable, never the key itself."""

    base_url: str | None = MISSING
    api: str = MISSING
    api_key_env: str | None = MISSING
    model: str | None = MISSING
    score: str = MISSING
    tokenizer: str | None = MISSING
    max_tokens_field: str = MISSING
    concurrency: int = MISSING
    rpm: int | None = MISSING
    tpm: int | None = MISSING
    timeout: Timeouts = MISSING
    retry: Retries = MISSING
    price: Price = MISSING


@dataclass
class ReplayLLMConfig(LLMConfig):
    """Recorded answers: a JSONL file that maps an id or a prompt to its answer."""

    path: str | None = MISSING
    model: str = MISSING


@dataclass
class TrackerConfig:
    """Where metrics are repeated, beside metrics.jsonl (configs/tracker)."""

    name: str = MISSING
    project: str = MISSING
    mode: str = MISSING
    media: bool = MISSING


@dataclass
class Config:
    """One experiment. `task`, `model`, `data`, `adapter` and `llm` hold the schema that the chosen YAML names; a task
    that trains nothing has no model and no adapter, and one that asks nobody has no llm.
    """

    scale: str = MISSING
    seed: int = MISSING
    runs: str = MISSING
    task: Any = MISSING
    model: Any = None
    data: Any = None
    adapter: Any = None
    llm: Any = None
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
    "llm": {"local": LocalLLMConfig, "endpoint": EndpointLLMConfig, "replay": ReplayLLMConfig},
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
    "trainer.schedule": ("constant", "linear", "cosine", "onecycle"),
    "trainer.precision": ("fp32", "bf16", "fp16"),
    "trainer.early_stop_mode": ("max", "min"),
    "trainer.name": ("single", "ddp"),
    "data.format": ("sms", "glue"),
    "adapter.name": ("head", "lora", "rgp", "full"),
    "adapter.other_params": ("train", "freeze"),
    "model.pooling": ("mean", "cls"),
    "model.head": ("linear", "mlp"),
    "llm.backend": ("local", "endpoint", "replay"),
    "llm.cache": ("off", "read", "write", "replay_only"),
    "llm.trace": ("full", "hash"),
    "llm.dtype": ("float32", "bfloat16", "float16"),
    "llm.api": ("chat", "completions"),
    "llm.max_tokens_field": ("max_tokens", "max_completion_tokens"),
    "llm.score": ("none", "vllm_prompt_logprobs", "echo"),
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


def is_private(config: Any) -> bool:
    """Whether the run trains under a privacy mechanism."""
    return config.privacy.mechanism != "none"
