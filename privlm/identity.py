"""Which run is this: the two hashes of a configuration, and the directory they name.

The run hash covers all that changes the result; the same hash is the same run, to be resumed or skipped. The cell hash
leaves out what only repeats or reshapes it (seed, processes, where files lie), and is what tables match on. Data and
weights that are not what their names promise (privlm.content) make another cell.
Which keys leave a hash is said by the fields of the schemas (privlm.schema.setting) and written into status.json, so
that whoever reads a run directory needs no schema. A null enters neither hash: a field that comes into a group later is
null in the YAML, and the runs of before keep their cell.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm.content import Content
from privlm.files import read_intact_json


@dataclass(frozen=True)
class Roles:
    """Dotted keys of a configuration: those that change neither the result nor what it is compared with (`same_run`),
    and those that make another run of the same table cell (`same_cell`).
    """

    same_run: tuple[str, ...] = ()
    same_cell: tuple[str, ...] = ()


MENUS = ("task.presets", "task.settings", "task.max_train_examples")
"""What a recipe of before chose from; in such a run, what was chosen stands in data, adapter, trainer and privacy."""

RULES = 1
"""Counts up whenever the cell hash of a configuration changes that is the same as before: what was noted under the same
number needs not be hashed again.
"""

ROLES_OF_BEFORE = Roles(
    same_run=(
        "runs", "recipe", "tracker", *MENUS,
        "trainer.log_every", "trainer.checkpoint_every", "trainer.keep_checkpoints",
        "data.path", "model.path", "llm.path", "llm.adapter", "llm.base_url", "llm.api_key_env", "llm.tokenizer",
        "llm.max_tokens_field", "llm.cache", "llm.cache_dir", "llm.trace", "llm.budget", "llm.concurrency", "llm.rpm",
        "llm.tpm", "llm.timeout", "llm.retry", "llm.price", "llm.batch_tokens",
    ),
    same_cell=("seed", "trainer.name", "trainer.processes", "trainer.micro_batch_size", "trainer.accelerate"),
)  # fmt: skip
"""The roles of run directories whose status.json names none. Frozen: such directories exist and do not change."""


def roles_of(status: Mapping[str, Any]) -> Roles:
    """The roles that a status.json names."""
    if "same_run" not in status:
        return ROLES_OF_BEFORE
    return Roles(tuple(status["same_run"]), tuple(status["same_cell"]))


def run_hash(config: DictConfig, fingerprints: Mapping[str, str], roles: Roles) -> str:
    """64 hexadecimal digits; `fingerprints` name the content of what the run reads (data, model)."""
    return digest({"config": _without(_plain(config), roles.same_run), "inputs": dict(fingerprints)})


def cell_hash(config: DictConfig | dict[str, Any], roles: Roles, own: Mapping[str, str] | None = None) -> str:
    """64 hexadecimal digits, equal for the seeds, engines and copies of one experiment.

    config: as composed, or as config.yaml of a run directory holds it. own: group -> digest of the content that is not
        what the group's name promises.
    """
    named = {"config": _without(_plain(config), (*roles.same_run, *roles.same_cell))}
    return digest(named | ({"own": dict(own)} if own else {}))


def run_directory(config: DictConfig, full_hash: str, contents: Mapping[str, Content] | None = None) -> Path:
    """runs/<task>/<slug>-<hash>: 8 digits of the hash, more where another run has the same 8.

    A run that is there keeps its directory, whatever its data or weights were called when it was made.
    """
    parent = Path(config.runs).expanduser().absolute() / config.task.name
    for digits in (8, 16, 32, 64):
        directory = parent / f"{slug(config, contents or {})}-{full_hash[:digits]}"
        for there in (directory, *sorted(parent.glob(f"*-{full_hash[:digits]}"))):
            if (read_intact_json(there / "status.json") or {}).get("run_hash") == full_hash:
                return there
        if read_intact_json(directory / "status.json") is None:  # whoever takes the run up refuses a damaged one
            return directory
    raise AssertionError("two runs cannot share all 64 digits")


def slug(config: DictConfig, contents: Mapping[str, Content]) -> str:
    """A short readable name, e.g. `minilm-sms_spam-head-dp3`."""
    names = {group: content.name for group, content in contents.items()}
    groups = [group for group in ("model", "llm", "data", "adapter") if config.get(group) is not None]
    parts = [names.get(group, config[group].name) for group in groups]
    if config.get("federated") is not None and config.federated.name != "none":
        parts.append(config.federated.name)
    if config.get("model") is not None:
        parts.append(_privacy_slug(config.privacy))
    parts.append(f"seed{config.seed}")
    return readable("-".join(parts))


def readable(text: str) -> str:
    """A part of a path: at most 100 letters, digits and dots."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:100]


def _privacy_slug(privacy: DictConfig) -> str:
    if privacy.mechanism == "none":
        return "nonprivate"
    for name, key in (("dp", "epsilon"), ("noise", "noise_multiplier")):
        if privacy.get(key) is not None:
            return f"{name}{privacy[key]:g}"
    return privacy.mechanism


def _plain(config: DictConfig | dict[str, Any]) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def _without(content: Any, keys: Iterable[str], prefix: str = "") -> Any:
    """A copy of plain containers without the dotted `keys` and without what is null."""
    if isinstance(content, list):
        return [_without(element, ()) for element in content]
    if not isinstance(content, dict):
        return content
    kept = {name: value for name, value in content.items() if value is not None and f"{prefix}{name}" not in keys}
    return {name: _without(value, keys, f"{prefix}{name}.") for name, value in kept.items()}


def digest(value: Any) -> str:
    """64 hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
