"""Finds a text-to-image pipeline before anything heavy is imported: a local folder, a package, or the hub. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm import hub
from privlm.content import Content, is_listed, repository_name, source_name
from privlm.diffusion import pipeline_folder
from privlm.diffusion.pipeline_folder import INDEX, STEMS, WITH_WEIGHTS
from privlm.diffusion.schema import is_pipeline
from privlm.errors import UsageError
from privlm.files import sha256_once

SETTINGS = ("*/*.json", "*/*.txt")
OFFLINE = "model=tiny_sd works offline"


@dataclass(frozen=True)
class PipelineFiles:
    """Where a pipeline lies.

    directory: of a hub's pipeline that is not downloaded yet it holds model_index.json at least.
    fingerprint: `sha256:...` of the content wherever it lies, or `hub:<id>@<commit>`.
    vae: folder of another VAE, with its fingerprint.
    """

    kind: str
    directory: Path
    fingerprint: str
    source: str
    vae: Path | None = None
    vae_fingerprint: str | None = None

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, of the content and of the VAE that takes the place of its own."""
        named = [self.fingerprint, *filter(None, [self.vae_fingerprint])]
        return hashlib.sha256("\n".join(named).encode()).hexdigest()


def locate_pipeline(config: Any) -> PipelineFiles:
    """Finds the pipeline of a PipelineConfig: its path, else the package, else the hub or its cache.

    Hashes what lies in a folder, about a second for each gigabyte.

    Raises UsageError for a model of another kind, for what is not at hand (says what to do), for a part that is absent
    or of another class, and for a packaged file that was changed.
    """
    if not is_pipeline(config):
        raise UsageError(f"model: '{config.name}' is no text-to-image pipeline; choose model=tiny_sd, sd15 or sdxl")
    found = _base_files(config)
    if not config.vae_path:
        return found
    vae = Path(config.vae_path).expanduser()
    fingerprint = _fingerprint(vae, pipeline_folder.files_of_vae(vae))
    return PipelineFiles(found.kind, found.directory, found.fingerprint, found.source, vae, fingerprint)


def inputs(config: Any) -> dict[str, str]:
    """Fingerprints of what a `model` group names, for the `inputs` of a runner. Raises UsageError as
    `locate_pipeline`.
    """
    found = locate_pipeline(config)
    return {"model": found.fingerprint} | ({"model.vae_path": found.vae_fingerprint} if found.vae_fingerprint else {})


def contents(config: Any) -> dict[str, Content]:
    """What is behind the name of a `model` group, for a runner's `contents`. With another VAE it is own weights."""
    found = locate_pipeline(config)
    known = is_listed(config, found.fingerprint) and found.vae is None
    digest = found.fingerprint if found.vae is None else f"sha256:{found.digest}"
    return {"model": Content(config.name if known else found.source, digest, known)}


def complete(found: PipelineFiles, config: Any) -> None:
    """Downloads what a hub's pipeline lacks. Raises UsageError where it lacks something even then."""
    if found.kind != "hub" or _is_complete(found.directory, config):
        return
    hub.download(found.directory, config.hub_id, "model", [*SETTINGS, *_weight_patterns(config.variant)])
    _require(found.directory, config)


def _base_files(config: Any) -> PipelineFiles:
    if config.path:
        directory = Path(config.path).expanduser()
        _require(directory, config)
        return PipelineFiles("path", directory, _content(directory, config), source_name(directory))
    if config.package:
        return _packaged(config)
    return _hub_files(config)


def _packaged(config: Any) -> PipelineFiles:
    spec = importlib.util.find_spec(config.package)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"model '{config.name}' is not at hand: package {config.package} is not installed; install it, or give "
            "model.path=FOLDER of a pipeline that save_pretrained has written"
        )
    directory = Path(spec.origin).parent / (config.package_folder or "")
    if not directory.is_dir():
        raise UsageError(f"model '{config.name}': package {config.package} holds no folder {config.package_folder}")
    _check_pinned(directory, config.sha256)
    _require(directory, config)
    return PipelineFiles("package", directory, _content(directory, config), config.name)


def _check_pinned(directory: Path, pinned: Mapping[str, str]) -> None:
    for name, digest in pinned.items():
        path = directory / name
        if not path.is_file() or sha256_once(path) != digest:
            raise UsageError(
                f"{path} is absent or not the file this model was pinned to (model.sha256): reinstall the package, or "
                "give model.path"
            )


def _hub_files(config: Any) -> PipelineFiles:
    if not config.hub_id:
        raise UsageError(f"model '{config.name}' has neither model.path nor model.hub_id: set one of them")
    try:
        directory = hub.find_snapshot(
            config.hub_id,
            "model",
            lambda snapshot: _is_complete(snapshot, config),
            probe=INDEX,
            revision=config.revision,
        )
    except hub.NotAtHandError as reason:
        at = f" at revision {config.revision}" if config.revision else ""
        raise UsageError(
            f"model '{config.name}' is not at hand: {config.hub_id}{at} is not whole in the hub cache, and {reason}; "
            f"give model.path=FOLDER of a pipeline that save_pretrained has written; {OFFLINE}"
        ) from None
    fingerprint = f"hub:{config.hub_id}@{directory.name}"
    return PipelineFiles("hub", directory, fingerprint, repository_name(config.hub_id))


def _require(directory: Path, config: Any) -> None:
    pipeline_folder.require_complete(directory, config.family, config.variant, allow_pickle=config.allow_pickle)


def _is_complete(directory: Path, config: Any) -> bool:
    try:
        _require(directory, config)
    except UsageError:
        return False
    return True


def _weight_patterns(variant: str | None) -> list[str]:
    """One form of the weights of each part, and no checkpoint of the repository's root."""
    mark = f".{variant}" if variant else ""
    names = [f"{stem}{mark}{number}.safetensors" for stem in STEMS for number in ("", "-*")]
    indexes = [f"{stem}.safetensors.index{mark}.json" for stem in STEMS]
    return [f"{part}/{name}" for part in WITH_WEIGHTS for name in (*names, *indexes)]


def _content(directory: Path, config: Any) -> str:
    return _fingerprint(
        directory, pipeline_folder.files_of(directory, config.variant, allow_pickle=config.allow_pickle)
    )


def _fingerprint(directory: Path, paths: Iterable[Path]) -> str:
    named = "".join(f"{path.relative_to(directory).as_posix()} {sha256_once(path)}\n" for path in paths)
    return f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"


def pins(directory: Path) -> dict[str, str]:
    """Path within a pipeline's folder -> sha256 of each file that is read: what model.sha256 of a package lists."""
    return {path.relative_to(directory).as_posix(): sha256_once(path) for path in pipeline_folder.files_of(directory)}
