"""Which run is this: the two hashes of a configuration, and the directory they name.

The run hash covers all that changes the result; the same hash is the same run, to be resumed or skipped. The cell hash
leaves out what only repeats or reshapes it (seed, processes, the content of local files), and is what tables match on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm.files import read_json

MENUS = ("task.presets", "task.settings", "task.max_train_examples")
"""Keys of a recipe from which it chooses: what is chosen stands in data, adapter, trainer and privacy."""

NEVER = (
    "runs",
    "recipe",
    *MENUS,
    "tracker",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "data.path",  # its fingerprint stands for it: moved data is the same run, changed data is not
    "model.path",
    "llm.path",
    "llm.adapter",
    "llm.base_url",  # who answers is llm.model
    "llm.api_key_env",
    "llm.tokenizer",
    "llm.max_tokens_field",
    "llm.cache",
    "llm.cache_dir",
    "llm.trace",
    "llm.budget",  # a larger budget goes on with the same run
    "llm.concurrency",
    "llm.rpm",
    "llm.tpm",
    "llm.timeout",
    "llm.retry",
    "llm.price",
    "llm.batch_tokens",
)
"""Keys that change neither the result nor what it is compared with."""

ONLY_RUN = (
    "seed",
    "trainer.name",
    "trainer.processes",
    "trainer.micro_batch_size",
    "trainer.accelerate",
)
"""Keys that make another run of the same table cell."""


def run_hash(config: DictConfig, fingerprints: Mapping[str, str]) -> str:
    """64 hexadecimal digits; `fingerprints` name the content of what the run reads (data, model)."""
    return _digest({"config": _without(config, NEVER), "inputs": dict(fingerprints)})


def cell_hash(config: DictConfig) -> str:
    """64 hexadecimal digits, equal for the seeds, engines and copies of one experiment."""
    return _digest({"config": _without(config, NEVER + ONLY_RUN)})


def run_directory(config: DictConfig, full_hash: str) -> Path:
    """runs/<task>/<slug>-<hash>: 8 digits of the hash, more where another run has the same 8."""
    parent = Path(config.runs).expanduser().absolute() / config.task.name
    for digits in (8, 16, 32, 64):
        directory = parent / f"{slug(config)}-{full_hash[:digits]}"
        status = read_json(directory / "status.json")
        if status is None or status.get("run_hash") == full_hash:
            return directory
    raise AssertionError("two runs cannot share all 64 digits")


def slug(config: DictConfig) -> str:
    """A short readable name, e.g. `minilm-sms_spam-head-dp3`."""
    parts = [config[group].name for group in ("model", "llm", "data", "adapter") if config.get(group) is not None]
    if config.get("model") is not None:
        parts.append(_privacy_slug(config.privacy))
    parts.append(f"seed{config.seed}")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts))[:100]


def _privacy_slug(privacy: DictConfig) -> str:
    if privacy.mechanism == "none":
        return "nonprivate"
    if privacy.epsilon is not None:
        return f"dp{privacy.epsilon:g}"
    return f"noise{privacy.noise_multiplier:g}"


def _without(config: DictConfig, keys: tuple[str, ...]) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    for key in keys:
        node, *path = key.split(".")
        if not path:
            content.pop(node, None)
        elif isinstance(content.get(node), dict):
            content[node].pop(path[0], None)
    return content  # type: ignore[return-value]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
