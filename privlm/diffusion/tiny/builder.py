"""`privlm build tiny_sd`: another small pipeline like the one that is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from privlm.errors import UsageError
from privlm.schema import problems, require_packages, setting

SCALES = ("smoke", "small")


@dataclass
class TinySDConfig:
    """scale: smoke, a minute and a half on two cores, colours alone are right; small, as shipped, half an hour or more.

    Null: as the scale has it.
    """

    scale: str = setting(options=SCALES, default="small")
    seed: int = setting(at_least=0, below=1 << 20, default=0)
    layouts: int | None = setting(above=0, default=None)
    autoencoder_steps: int | None = setting(above=0, default=None)
    denoiser_steps: int | None = setting(above=0, default=None)


def tiny_sd(folder: Path, words: Sequence[str]) -> str:
    """A small real Stable Diffusion of coloured shapes, trained from nothing: scale=smoke|small seed=0.

    Returns what it can do, in a sentence. Raises UsageError for an unknown field or value.
    """
    config = _config(words)
    require_packages("privlm build tiny_sd", "diffusers", "PIL", extra="diffusion")
    from privlm.diffusion.tiny.build import build, measure
    from privlm.diffusion.tiny.recipe import RECIPES

    given = {name: value for name, value in vars(config).items() if name != "scale" and value is not None}
    pipeline = build(folder, replace(RECIPES[config.scale], **given))
    return measure(pipeline, folder)


def _config(words: Sequence[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.merge(OmegaConf.structured(TinySDConfig), OmegaConf.from_dotlist(list(words)))
    except OmegaConfBaseException as error:
        raise UsageError(f"tiny_sd: {str(error).splitlines()[0]}") from error
    found = problems(config, None)
    if found:
        raise UsageError("\n".join(found))
    return OmegaConf.to_object(config)


BUILDERS = {"tiny_sd": tiny_sd}
