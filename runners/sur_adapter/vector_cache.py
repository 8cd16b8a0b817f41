"""Vectors of prompts on disk: shards, and an index that says where each lies. What was computed is not computed again.

    <folder>/about.json       who gives the vectors, of which layer, pooled and normalised how
    <folder>/index.jsonl      one sealed line a shard: its name, its digest, and for each vector key, start, rows
    <folder>/shard-....safetensors   rows of all vectors of a shard, one below the other

A shard is written whole before its line. One that is absent, or not what was written, is left out and told: its prompts
are computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from privlm import files
from privlm.errors import UsageError

from .vectors import checked

logger = logging.getLogger("privlm")

SHARD_SIZE = 10_000  # prompts
ABOUT, INDEX = "about.json", "index.jsonl"


def key_of(about: Mapping[str, Any], prompt: str) -> str:
    """64 hexadecimal digits of a prompt and of all that decides its vector."""
    return hashlib.sha256(json.dumps([dict(about), prompt], sort_keys=True).encode()).hexdigest()


class VectorCache:
    """The vectors of one giver in a folder. about: see privlm.runners.sur_adapter.vectors.Vectors.

    Raises UsageError for a folder of another giver.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = dict(about)
        kept = files.read_json(folder / ABOUT)
        if kept is not None and kept != self.about:
            differing = [name for name in self.about if kept.get(name) != self.about[name]]
            other = ", ".join(f"{name}={kept.get(name)}, not {self.about[name]}" for name in differing)
            raise UsageError(f"{folder} holds vectors of another giver ({other}): give another task.features.cache_dir")
        self._found: dict[str, Tensor] | None = None

    @property
    def found(self) -> dict[str, Tensor]:
        """Key -> rows [R, h] of every whole shard."""
        if self._found is None:
            self._found = self._read()
        return self._found

    def fill(
        self,
        prompts: Sequence[str],
        give: Callable[[Sequence[str]], Sequence[Tensor]],
        *,
        chunk: int = 256,
        tick: Callable[[int], None] = lambda done: None,
    ) -> dict[str, Tensor]:
        """prompt -> rows, of all prompts; those that no shard holds are asked for, `chunk` at a time.

        What has come is written even where asking ends in an exception. tick: told how many prompts have theirs.
        """
        keys = {prompt: key_of(self.about, prompt) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, key in keys.items() if key not in self.found]
        fresh: dict[str, Tensor] = {}
        try:
            for start in range(0, len(missing), chunk):
                asked = missing[start : start + chunk]
                fresh |= checked(dict(zip(asked, give(asked), strict=True)), "task.features")
                if len(fresh) >= SHARD_SIZE:
                    self._write(fresh)
                    fresh = {}
                tick(len(keys) - len(missing) + start + len(asked))
        finally:
            self._write(fresh)
        return checked({prompt: self.found[key] for prompt, key in keys.items()}, self.folder)

    def _write(self, fresh: Mapping[str, Tensor]) -> None:
        if not fresh:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ABOUT).exists():
            files.write_json(self.folder / ABOUT, self.about)
        keys = [key_of(self.about, prompt) for prompt in fresh]
        name = f"shard-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}.safetensors"
        rows = torch.cat(list(fresh.values()))
        files.write_file(self.folder / name, lambda path: save_file({"vectors": rows}, path))
        places, start = [], 0
        for key, own in zip(keys, fresh.values(), strict=True):
            places.append([key, start, len(own)])
            start += len(own)
        line = {"shard": name, "digest": files.sha256_file(self.folder / name), "vectors": places}
        files.cut_torn_line(self.folder / INDEX)
        files.append_durably(self.folder / INDEX, [files.sealed(line)])
        self.found.update(zip(keys, fresh.values(), strict=True))

    def _read(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        damaged: list[int] = []
        for line in files.read_json_lines(self.folder / INDEX, left_out=damaged):
            path = self.folder / line["shard"]
            if not path.is_file() or files.sha256_file(path) != line["digest"]:
                logger.warning("%s is absent or half written: its prompts are computed again", path)
                continue
            rows = load_file(path)["vectors"]
            found |= {key: rows[start : start + length] for key, start, length in line["vectors"]}
        if damaged:
            logger.warning("%s: damaged lines are left out: %s", self.folder / INDEX, ", ".join(map(str, damaged)))
        return found
