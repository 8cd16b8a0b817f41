"""What the folder of a pipeline has to hold, read from its JSON files alone. No torch.

    model_index.json                   class of the pipeline, and library and class of each part
    tokenizer/ text_encoder/ unet/ vae/ scheduler/, of SDXL also tokenizer_2/ and text_encoder_2/
    safety_checker/ feature_extractor/ where it has them
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from privlm.diffusion.schema import AUTO
from privlm.errors import UsageError

INDEX = "model_index.json"

PIPELINES = {"StableDiffusionPipeline": ("sd1", "sd2"), "StableDiffusionXLPipeline": ("sdxl",)}
"""Class of a pipeline -> its families."""

SD_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
PARTS = {"sd1": SD_PARTS, "sd2": SD_PARTS, "sdxl": (*SD_PARTS, "tokenizer_2", "text_encoder_2")}

SAFETY = ("safety_checker", "feature_extractor")
"""Parts that a folder may lack."""

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
CLASSES = {
    "tokenizer": TOKENIZERS,
    "tokenizer_2": TOKENIZERS,
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
"""Part -> the classes that it may have; a VAE may also be one of PrivLM's own."""

OWN_LIBRARY = "privlm.diffusion."

WITH_WEIGHTS = ("text_encoder", "text_encoder_2", "unet", "vae", "safety_checker")
STEMS = ("model", "diffusion_pytorch_model")
"""Of weight files, as transformers and diffusers name them."""

PICKLES = ("pytorch_model", "diffusion_pytorch_model")


def read_index(directory: Path) -> dict[str, Any]:
    """model_index.json. Raises UsageError where there is none, or it is not one."""
    path = directory / INDEX
    if directory.is_file():
        raise UsageError(
            f"model.path: {directory} is a single file; load it once with from_single_file of diffusers, save it with "
            "save_pretrained(FOLDER), and give model.path=FOLDER"
        )
    if not path.is_file():
        raise UsageError(
            f"model.path: {directory} holds no {INDEX}, so it is no pipeline of diffusers: give the folder that "
            "save_pretrained has written"
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """An object. Raises UsageError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not JSON"
        raise UsageError(f"{path}: {reason}; restore the folder from where it came from") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a JSON object; restore the folder from where it came from")
    return content


def family_of(directory: Path, named: str = AUTO) -> str:
    """`sd1`, `sd2` or `sdxl`: SDXL is a class of its own, and SD 2 projects by linear layers in its UNet.

    named: what the configuration says. Raises UsageError where that is another, and for a pipeline of another class.
    """
    kind = read_index(directory).get("_class_name")
    if kind not in PIPELINES:
        raise UsageError(
            f"{directory / INDEX}: {kind} is not a pipeline that is trained here; use one of {', '.join(PIPELINES)}"
        )
    families = PIPELINES[kind]
    if len(families) > 1:
        is_linear = bool(read_json(directory / "unet" / "config.json").get("use_linear_projection"))
        families = (families[is_linear],)
    if named not in (AUTO, *families):
        raise UsageError(f"model.family={named}: {directory} holds {families[0]}; leave model.family at auto")
    return families[0]


def require_complete(
    directory: Path, named: str = AUTO, variant: str | None = None, *, allow_pickle: bool = False
) -> str:
    """The family of a folder that has every part with its weights, of a class that is known here.

    Raises UsageError naming what is absent or wrong.
    """
    index = read_index(directory)
    if index.get("_class_name") in PIPELINES:
        any_family = PIPELINES[index["_class_name"]][0]
        for part in PARTS[any_family]:
            _require_part(directory, index, part)
    family = family_of(directory, named)
    for part in parts_of(directory):
        if part in WITH_WEIGHTS:
            weight_files(directory / part, variant, allow_pickle=allow_pickle)
    return family


def parts_of(directory: Path) -> list[str]:
    """The parts that a folder has and that are read."""
    index = read_index(directory)
    wanted = (*PARTS[PIPELINES[index["_class_name"]][0]], *SAFETY)
    return [part for part in wanted if (index.get(part) or [None])[0] is not None and (directory / part).is_dir()]


def _require_part(directory: Path, index: dict[str, Any], part: str) -> None:
    named = index.get(part)
    if not isinstance(named, list) or len(named) != 2 or None in named:
        raise UsageError(f"{directory / INDEX} names no {part}: restore the folder from where it came from")
    library, kind = named
    is_own = part == "vae" and library.startswith(OWN_LIBRARY)
    if part in CLASSES and kind not in CLASSES[part] and not is_own:
        raise UsageError(f"{directory / INDEX}: {part} is a {kind}, not a {CLASSES[part][0]}; use another pipeline")
    if not (directory / part).is_dir():
        raise UsageError(f"{directory} holds no folder {part}, which {INDEX} names: restore it from where it came from")


def weight_files(folder: Path, variant: str | None = None, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights of a part: one, or an index and its shards.

    Raises UsageError where they are absent, where a shard is, and where there are pickled ones alone.
    """
    mark = f".{variant}" if variant else ""
    single = [folder / f"{stem}{mark}.safetensors" for stem in STEMS]
    indexes = [folder / f"{stem}.safetensors.index{mark}.json" for stem in STEMS]
    pickled = [folder / f"{stem}{mark}.bin" for stem in PICKLES]
    for path in (*single, *indexes, *(pickled if allow_pickle else ())):
        if path.is_file():
            return [path, *_shards(path)] if path in indexes else [path]
    if any(path.is_file() for path in pickled):
        raise UsageError(
            f"{folder} holds pickled weights alone: save it again with safe_serialization=True, or, where you trust "
            "its source, set model.allow_pickle=true"
        )
    named = f" of variant {variant}" if variant else ""
    remedy = "set model.variant=null, or take a folder that has it" if variant else "restore it from where it came from"
    raise UsageError(f"{folder} holds no weights{named} (*.safetensors): {remedy}")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise UsageError(f"{index}: not an index of weights; restore the folder from where it came from")
    shards = [index.parent / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not shard.is_file():
            raise UsageError(f"{index.parent} holds no {shard.name}, which {index.name} names: copy it there")
    return shards


def files_of(directory: Path, variant: str | None = None, *, allow_pickle: bool = False) -> list[Path]:
    """All that decides what a complete folder computes: model_index.json, settings, vocabularies, weights."""
    found = {directory / INDEX}
    for part in parts_of(directory):
        found |= set(_part_files(directory / part, variant, allow_pickle=allow_pickle, weighs=part in WITH_WEIGHTS))
    return sorted(found)


def _part_files(folder: Path, variant: str | None, *, allow_pickle: bool, weighs: bool) -> Iterable[Path]:
    yield from (path for path in folder.iterdir() if path.suffix in (".json", ".txt") and ".index" not in path.name)
    if weighs:
        yield from weight_files(folder, variant, allow_pickle=allow_pickle)


def files_of_vae(folder: Path) -> list[Path]:
    """The same of a VAE alone. Raises UsageError where the folder holds none."""
    if not (folder / "config.json").is_file():
        raise UsageError(f"model.vae_path: {folder} holds no config.json; give the folder of an AutoencoderKL")
    kind = read_json(folder / "config.json").get("_class_name")
    if kind not in CLASSES["vae"]:
        raise UsageError(f"model.vae_path: {folder} holds a {kind}; give the folder of an AutoencoderKL")
    return [folder / "config.json", *weight_files(folder)]
