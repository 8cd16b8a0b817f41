"""The model of a run: the frozen pipeline with what trains in it, made so that it can be made again and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from privlm.config import Config
from privlm.diffusion.denoiser import Denoiser
from privlm.errors import UsageError
from privlm.models.loaded import Loaded

from . import artefact
from .adapter import SurAdapter
from .losses import SurModel, make_projection
from .vectors import Vectors


def load_sur(config: Config, opened: Any, vectors: Vectors | None) -> Loaded:
    """The adapter before the frozen UNet, which all models that are built share. It is saved as an artefact.

    opened: an OpenedPipeline. vectors: of a language model, None where it has no part.

    Raises UsageError where the heads do not divide the width of the text encoder.
    """
    denoiser = Denoiser(opened.unet, opened.text_encoder)
    width = opened.state_size

    def build() -> nn.Module:
        torch.manual_seed(config.seed)
        adapter = SurAdapter.of(config.adapter, width)
        projection = None if vectors is None else make_projection(config.adapter.proj, vectors.width, width)
        return SurModel(denoiser, adapter, projection)

    about = about_of(config, opened, vectors)
    loaded = Loaded.of(build, made_of=[about["adapter"], about["base"]["digest"], width, _size(vectors), config.seed])

    def save(model: nn.Module, folder: Path) -> None:
        artefact.write(folder, parts_of(model), about | {"digest": loaded.digest})

    def load(model: nn.Module, folder: Path) -> None:
        found = artefact.read(folder)
        if found.about["digest"] != loaded.digest:
            raise UsageError(
                f"{folder} was trained from another base, or with another adapter or seed: give the configuration that "
                "it was trained with"
            )
        artefact.put(nn.ModuleDict(parts_of(model)), found.tensors, folder / artefact.WEIGHTS)

    return replace(loaded, save=save, load=load)


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """What of the model the run has made."""
    assert isinstance(model, SurModel)
    return {"adapter": model.adapter} | ({} if model.projection is None else {"projection": model.projection})


def about_of(config: Config, opened: Any, vectors: Vectors | None) -> dict[str, Any]:
    """adapter_config.json, but for digests of the weights."""
    task = config.task
    groups = {"model": config.model, "adapter": config.adapter, "losses": task.losses, "sampling": task.sampling}
    plain: Any = OmegaConf.to_container(OmegaConf.create(groups))
    return {
        "adapter": plain["adapter"],
        "base": {
            "name": config.model.name,
            "digest": opened.digest,
            "family": opened.family,
            "width": opened.state_size,
            "model": {name: value for name, value in plain["model"].items() if name != "sha256"},  # see digest
        },
        "llm": None if vectors is None else {**vectors.about, "width": vectors.width},
        "method": task.method,
        "losses": plain["losses"],
        "sampling": plain["sampling"],
    }


def _size(vectors: Vectors | None) -> int | None:
    return None if vectors is None else vectors.width
