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
from privlm.files import read_json, write_json
from privlm.job import Job, Stage
from privlm.llm.client import LanguageModel
from privlm.llm.opening import open_llm

from .vector_cache import ABOUT, VectorCache, key_of
from .vectors import Vectors, read_dictionary

ROLE = "features"

PLACE = "place.json"
"""In the folder of the stage: where its vectors lie."""

Give = Callable[[Sequence[str]], list[Tensor]]
"""Prompts -> rows [R, h] of each."""


def features(config: Config, job: Job, prompts: Sequence[str]) -> Vectors:
    """Of all prompts, in a stage of its own: computed by the main process, kept until the run is done.

    Raises UsageError for a layer that the model does not have, and for prompts that a file of vectors lacks.
    """
    settings = config.task.features
    with job.stage("features", temporary=True) as stage:
        if settings.backend == "precomputed":
            return precomputed(settings.path, prompts)
        if stage.needed and job.is_main:
            _compute(stage, prompts)
        job.wait_for_everyone()
        folder = stage.folder / read_json(stage.folder / PLACE)["folder"]
        found = _of_folder(folder, prompts)
        found.require(prompts, folder)
        return found


def _compute(stage: Stage, prompts: Sequence[str]) -> None:
    """Fills the cache of the stage, or the one that runs share."""
    config = stage.config
    if config.task.features.backend == "hash":
        width = config.task.features.width
        _fill(stage, {"backend": "hash", "width": width}, lambda texts: hashed(texts, width), prompts)
        return
    with open_llm(config.llm, stage.job, role=ROLE) as model:
        model.require("hidden_states", by="task.losses.w_llm")
        about, give = of_llm(model, config.task.features)
        _fill(stage, about, give, prompts)


def _fill(stage: Stage, about: dict[str, Any], give: Give, prompts: Sequence[str]) -> None:
    shared = stage.config.task.features.cache_dir
    folder = stage.folder / "vectors" if shared is None else Path(shared).expanduser().absolute() / _name(about)
    with stage.job.progress("features of the prompts", len(set(prompts)), interruptible=True) as tick:
        VectorCache(folder, about).fill(prompts, give, tick=tick)
    write_json(stage.folder / PLACE, {"folder": str(folder) if shared else folder.name})
    stage.output(stage.folder / PLACE)
    if shared is None:
        stage.output(*sorted(path for path in folder.iterdir() if path.is_file()))


def _name(about: dict[str, Any]) -> str:
    """Of the folder of a giver among those that a cache holds."""
    return key_of(about, "")[:16]


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
