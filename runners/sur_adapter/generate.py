"""`privlm sur_adapter generate`: images of prompts by a trained adapter, with no more of the run than its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from privlm import files
from privlm.diffusion.schema import PipelineConfig, SamplingConfig
from privlm.errors import UsageError
from privlm.rundir import MODEL
from privlm.schema import problems, require_packages, setting

from .config import APPLIED, SUR

TRAIN = "train"
"""The stage that trains the adapter."""

IMAGES = "images.json"
"""Beside the images: which is of what."""


@dataclass
class Asked:
    """prompt: one, or several. adapter: the folder of a run or of an adapter. out: a new folder. eta: null, its own.

    num_images: of each prompt, from the seeds seed, seed + 1, ... model: fields of the base that are others now, as its
    path.
    """

    prompt: list[str] = field(default_factory=list)
    adapter: str | None = None
    out: str = "images"
    eta: float | None = setting(at_least=0, at_most=1, default=None)
    num_images: int = setting(above=0, default=1)
    seed: int = setting(at_least=0, default=0)
    steps: int | None = setting(above=0, default=None)
    guidance_scale: float | None = setting(at_least=0, default=None)
    negative_prompt: str | None = None
    apply_to: str | None = setting(options=APPLIED, default=None)
    allow_other_base: bool = False
    model: dict[str, Any] = field(default_factory=dict)


def read_words(words: Sequence[str]) -> Asked:
    """Of `field=value`; prompt may come several times, and is taken as it stands.

    Raises UsageError for what is no field, or has no such value.
    """
    unread = [word for word in words if "=" not in word]
    if unread:
        raise UsageError(f"'{unread[0]}' is no field=value (privlm {SUR} generate --help lists them)")
    prompts = [word.partition("=")[2] for word in words if word.startswith("prompt=")]
    try:
        given = OmegaConf.from_dotlist([word for word in words if not word.startswith("prompt=")])
        asked = OmegaConf.merge(OmegaConf.structured(Asked), given, {"prompt": prompts})
    except OmegaConfBaseException as error:
        raise UsageError(f"privlm {SUR} generate: {str(error).splitlines()[0]}") from error
    wrong = problems(asked, asked) + _absent(asked)
    if wrong:
        raise UsageError("\n".join(wrong))
    found: Any = OmegaConf.to_object(asked)
    return found


def _absent(asked: Any) -> list[str]:
    found = []
    if not [prompt for prompt in asked.prompt if prompt.strip()]:
        found.append("prompt: say what is to be drawn, prompt='pair navy disc'")
    if asked.adapter is None:
        found.append("adapter: name a finished run of task=sur_adapter, or the folder of its adapter")
    if Path(asked.out).expanduser().exists():
        found.append(f"out: {asked.out} is there already; give a new folder")
    return found


def generate(words: Sequence[str]) -> str:
    """Writes PNG files and a list of them; says what was made. Raises UsageError before anything is written."""
    asked = read_words(words)
    require_packages(f"privlm {SUR} generate", "diffusers", "PIL", extra="diffusion")
    from . import artefact
    from .drawing import Artist

    folder = adapter_folder(Path(str(asked.adapter)).expanduser())
    kept = artefact.read(folder)
    sampling = _sampling(asked, kept.about)
    from privlm.diffusion.pipelines import open_pipeline
    from privlm.diffusion.sampling import Sampler

    opened = open_pipeline(_base(asked, kept.about))
    kept.require_base(opened.state_size, opened.digest, allow_other=asked.allow_other_base)
    both = (asked.apply_to or kept.about["adapter"]["apply_to"]) == "both"
    artist = Artist(opened.pipe(), Sampler.of(sampling), kept.adapter(), both)
    prompts = [prompt for prompt in asked.prompt for _ in range(asked.num_images)]
    seeds = [asked.seed + number for _ in asked.prompt for number in range(asked.num_images)]
    images = artist.draw(prompts, seeds, asked.eta)
    eta = kept.about["adapter"]["eta"] if asked.eta is None else asked.eta
    told = {"eta": eta, "base": kept.about["base"]["name"], "notes": list(opened.notes)}
    _write(Path(asked.out).expanduser(), images, prompts, seeds, told)
    return f"{asked.out}: {len(images)} images, eta {eta:g}"


def adapter_folder(named: Path) -> Path:
    """Where the adapter of a run lies, or the folder itself. Raises UsageError where there is none."""
    from .artefact import ABOUT

    for folder in (named, named / "stages" / TRAIN / MODEL):
        if (folder / ABOUT).is_file():
            return folder
    raise UsageError(f"adapter: {named} is neither a run with a SUR adapter nor the folder of one (no {ABOUT})")


def _base(asked: Asked, about: Any) -> Any:
    """The pipeline that the adapter was trained before, with what the words change of it."""
    words, values = dict(asked.model), about["base"]["model"] | {"sha256": {}}
    if "path" in words:
        values |= {"hub_id": None, "package": None, "package_folder": None}
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PipelineConfig), values, words))
    except OmegaConfBaseException as error:
        raise UsageError(f"model: {str(error).splitlines()[0]}") from error


def _sampling(asked: Asked, about: Any) -> SamplingConfig:
    """That of the run, as far as the words do not say otherwise."""
    names = ("steps", "guidance_scale", "negative_prompt")
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    return SamplingConfig(**{**about["sampling"], **given})


def _write(out: Path, images: Any, prompts: Sequence[str], seeds: Sequence[int], told: dict[str, Any]) -> None:
    from PIL import Image

    names = [f"{number:04}-{_readable(prompt)}.png" for number, prompt in enumerate(prompts)]

    def fill(folder: Path) -> None:
        for name, image in zip(names, images, strict=True):
            Image.fromarray(image).save(folder / name)
        rows = [
            {"file": name, "prompt": prompt, "seed": seed}
            for name, prompt, seed in zip(names, prompts, seeds, strict=True)
        ]
        files.write_json(folder / IMAGES, {**told, "images": rows})

    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_directory(out, fill)


def _readable(prompt: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", prompt).strip("_")[:40] or "prompt"
