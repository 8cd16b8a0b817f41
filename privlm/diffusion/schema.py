"""The schema of text-to-image pipelines in the group `model`, and settings that tasks of images share. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.models.schema import DTYPES
from privlm.schema import setting

AUTO = "auto"
FAMILIES = (AUTO, "sd1", "sd2", "sdxl")
"""Of model.family; `auto` reads it from the folder (privlm.diffusion.pipeline_folder)."""

SCHEDULERS = ("ddim", "dpm", "euler")
"""Of a sampler; privlm.diffusion.sampling serves them."""


@dataclass
class PipelineConfig:
    """A latent text-to-image pipeline of diffusers (configs/model): from a path, else a package, else the hub."""

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    family: str = setting(options=FAMILIES)
    hub_id: str | None = setting(
        instead_of=("path", "package", "package_folder"), not_with=("path", "package", "package_folder")
    )
    revision: str | None = setting(not_with=("path", "package"))
    variant: str | None = MISSING
    path: str | None = setting(  # its fingerprint stands for it: moved weights are the same run
        same_run=True, not_with=("hub_id", "package", "package_folder", "sha256")
    )
    package: str | None = setting(instead_of="path")
    package_folder: str | None = setting(instead_of="path")
    sha256: dict[str, str] = setting(instead_of="path", not_with=("hub_id",))
    vae_path: str | None = setting(same_run=True)  # the same
    dtype: str = setting(options=DTYPES)
    allow_pickle: bool = MISSING
    pretrained_on: list[str] = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        if self.path or not (self.package and self.hub_id):
            return []
        return [f"model.package={self.package} leaves model.hub_id={self.hub_id} unread: set one of them to null"]


@dataclass
class SamplingConfig:
    """How images are made of prompts. scheduler: null is the pipeline's own. negative_prompt: null is the family's
    way to leave the text out. size: pixels of a side, null is the size that the UNet was made for.
    """

    steps: int = setting(above=0)
    guidance_scale: float = setting(at_least=0)
    batch_size: int = setting(above=0)
    scheduler: str | None = setting(options=SCHEDULERS)
    negative_prompt: str | None = MISSING
    size: int | None = setting(above=0)


@dataclass
class AverageConfig:
    """An exponential moving average of what trains. decay: its upper bound (privlm.diffusion.averaging)."""

    use: bool = MISSING
    decay: float = setting(above=0, below=1)


def is_pipeline(config: Any) -> bool:
    """Whether a `model` group describes a text-to-image pipeline: as an object, as composed, or as a run holds it."""
    return getattr(config, "family", None) in FAMILIES
