"""Vectors of the narrative prompts, of whoever `task.features` names: a language model, hashed words, or a file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privlm.config import Config
from privlm.errors import UsageError
from privlm.files import read_json
from privlm.job import Job, Stage
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm

from .vector_cache import ABOUT, VectorCache, key_of
from .vectors import Vectors, read_dictionary

ROLE = "features"

Give = Callable[[Sequence[str]], list[Tensor]]
"""Prompts -> rows [R, h] of each."""


def features(config: Config, job: Job, prompts: Sequence[str]) -> Vectors:
    """Of all prompts, in a stage of its own: computed by the main process, kept until the run is done.

    Raises UsageError for a layer that the model does not have, and for prompts that a file of vectors lacks.
    """
    with job.stage("features", temporary=True) as stage:
        if config.task.features.backend == "precomputed":
            return precomputed(config.task.features.path, prompts)
        if config.task.features.backend == "hash":
            width = config.task.features.width
            return _kept(stage, {"backend": "hash", "width": width}, lambda texts: hashed(texts, width), prompts)
        with open_llm(config.llm, job, role=ROLE) as model:
            model.require("hidden_states", by="task.losses.w_llm")
            about, give = of_llm(model, config.task.features)
            return _kept(stage, about, give, prompts)


def of_llm(model: LanguageModel, settings: Any) -> tuple[dict[str, Any], Give]:
    """What the vectors are of, and what gives them. settings: a FeaturesConfig."""
    names = ("layer", "pooling", "norm", "dtype")
    about = {"llm": model.backend.model, **{name: getattr(settings, name) for name in names}}
    dtype = getattr(torch, settings.dtype)

    def give(texts: Sequence[str]) -> list[Tensor]:
        try:
            states = model.hidden_states(texts, settings.layer, settings.pooling, settings.norm)
        except UsageError as error:
            raise UsageError(f"task.features: {error}") from error
        return [own.to(dtype).reshape(-1, own.shape[-1]) for own in states]

    return about, give


def hashed(texts: Sequence[str], width: int) -> list[Tensor]:
    """Words added up at places and with signs that their digests give (feature hashing, Weinberger et al., arXiv
    0902.2206), as rows [1, width] of unit length.
    """
    rows = []
    for text in texts:
        row = torch.zeros(1, width)
        for word in re.findall(r"\w+", text.lower()) or [text]:
            bits = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "big")
            row[0, (bits >> 1) % width] += 1.0 if bits & 1 else -1.0
        rows.append(row / row.norm().clamp(min=1e-12))
    return rows


def precomputed(path: str | Path, prompts: Sequence[str]) -> Vectors:
    """Of a dictionary (.pt) of the released code, or of a folder that a run has filled (task.features.cache_dir).

    Raises UsageError for what is neither, and for prompts that have no vector in it.
    """
    source = Path(path).expanduser()
    found = _of_folder(source, prompts) if source.is_dir() else read_dictionary(source)
    found.require(prompts, source)
    return found


def _of_folder(folder: Path, prompts: Sequence[str]) -> Vectors:
    about = read_json(folder / ABOUT)
    if about is None:
        raise UsageError(f"task.features.path: {folder} holds no {ABOUT}: it is no folder of vectors")
    kept = VectorCache(folder, about).found
    keys = {prompt: key_of(about, prompt) for prompt in prompts}
    return Vectors({prompt: kept[key] for prompt, key in keys.items() if key in kept}, about)


def _kept(stage: Stage, about: dict[str, Any], give: Give, prompts: Sequence[str]) -> Vectors:
    """From the cache of the stage, or from task.features.cache_dir, which runs share."""
    shared = stage.config.task.features.cache_dir
    folder = stage.folder if shared is None else Path(shared).expanduser() / key_of(about, "")[:16]
    cache = VectorCache(folder, about)
    if stage.job.is_main and stage.needed:
        unique = len(dict.fromkeys(prompts))
        with stage.job.progress("features of the prompts", unique, interruptible=True) as tick:
            cache.fill(prompts, give, tick=tick)
        if shared is None:
            stage.output(*sorted(path for path in folder.iterdir() if path.is_file()))
    stage.job.wait_for_everyone()
    return Vectors(VectorCache(folder, about).fill(prompts, give), about)
