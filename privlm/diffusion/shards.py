"""Tensors that are computed once and kept on disk, piece by piece: what a kill leaves is used, what is damaged is not.

A shard is one file. Its name is the digest of everything that it depends on, and it holds that digest and the one of
its tensors: what was computed from other data, or by another model, is never found, and what is not what was written is
computed anew and told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privlm import files

logger = logging.getLogger("privlm")

FORMAT = 1
"""Version of what a shard holds; to be raised with every change of it."""


def key_of(**parts: Any) -> str:
    """64 hexadecimal digits of what a shard depends on: texts, numbers, lists and dicts of them."""
    return sha256(json.dumps({"format": FORMAT} | parts, sort_keys=True).encode()).hexdigest()


def kept(folder: Path | None, key: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of `key`, on the CPU: from `folder`, else computed and written there. None: nothing is kept.

    One process writes into a folder at a time: in a run of several, the others wait.
    """
    if folder is None:
        return _on_cpu(compute())
    path = folder / f"{key}.safetensors"
    found = _read(path, key)
    if found is None:
        found = _on_cpu(compute())
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, key, found)
    return found


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """None where there is nothing, or nothing to be trusted, which is told."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        logger.warning("%s cannot be read (%s): computed anew", path, type(error).__name__)
        return None
    problem = _problem(said, key, tensors)
    if problem is not None:
        logger.warning("%s %s: computed anew", path, problem)
        return None
    return tensors


def _problem(said: Mapping[str, str], key: str, tensors: Mapping[str, Tensor]) -> str | None:
    if said.get("key") != key:
        return "is of other data or of another model"
    return None if said.get("sha256") == _digest(tensors) else "is not what was written"


def _write(path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    said = {"key": key, "sha256": _digest(tensors)}
    files.write_file(path, lambda temporary: save_file(tensors, temporary, said))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
