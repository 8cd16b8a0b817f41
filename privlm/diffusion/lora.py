"""Low-rank pairs beside the weights of a UNet, or of a CLIP text encoder, in the files of diffusers.

The UNet stays a UNet of diffusers: pairs are injected into it, nothing is wrapped around it, so that any pipeline takes
it as it is. Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn

from privlm import files
from privlm.adapters.methods import model_type, seeded
from privlm.adapters.schema import AdapterConfig
from privlm.adapters.targets import lora_targets
from privlm.diffusion import text_keys
from privlm.errors import UsageError
from privlm.models.loading import quiet, readable

LORA_FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Entry of the file's metadata where diffusers keeps the settings."""

ADAPTER = "default"
METHODS = ("lora", "full", "none")
PARTS = ("unet", "text_encoder", "text_encoder_2")


def adapt(part: Any, config: AdapterConfig, seed: int) -> Any:
    """Sets what trains of a UNet or a text encoder: everything, nothing, or low-rank pairs beside its frozen weights.

    Changes `part` and returns it. Pairs are float32 whatever the weights are. Linear and convolution layers can be
    targets; adapter.target_modules=null takes the projections of attention.

    seed: decides the pairs' initial values; torch's global generator is neither read nor moved.

    Raises UsageError for another adapter, a target without a module, and a rank beyond a weight's.
    """
    if config.name not in METHODS:
        raise UsageError(
            f"adapter={config.name} is for models of text; a text-to-image model takes {', '.join(METHODS)}"
        )
    part.requires_grad_(config.name == "full")
    if config.name != "lora":
        return part
    settings: dict[str, Any] = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
    targets = sorted(lora_targets(config, model_type(part), _shapes(part)))
    with seeded(seed):
        part.add_adapter(LoraConfig(**settings, target_modules=targets, bias="none"), adapter_name=ADAPTER)
    for parameter in part.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return part


def is_adapted(part: nn.Module) -> bool:
    """Whether low-rank pairs are in it."""
    return any(isinstance(module, BaseTunerLayer) for module in part.modules())


@contextmanager
def teacher(part: nn.Module) -> Iterator[nn.Module]:
    """Within it the part is the frozen one that it was before any training: its pairs are out.

    Raises ValueError for a part without pairs, whose own weights train: keep a copy of it as a teacher.
    """
    layers = [module for module in part.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise ValueError(
            f"{type(part).__name__} has no adapter to be left out: keep a frozen copy of it as the teacher"
        )
    trains = [(parameter, parameter.requires_grad) for parameter in part.parameters()]
    were_out = [layer.disable_adapters for layer in layers]
    _switch(layers, [True] * len(layers))
    try:
        yield part
    finally:
        _switch(layers, were_out)
        for parameter, was_trained in trains:  # peft freezes what it leaves out, and thaws all that it takes in
            parameter.requires_grad_(was_trained)


def save_lora(folder: Path, *, unet: Any = None, text_encoder: Any = None, text_encoder_2: Any = None) -> Path:
    """Writes the pairs of these parts into `folder`/LORA_FILE, with their settings, durably; returns its path.

    Any pipeline of diffusers takes the file: pipe.load_lora_weights(folder).

    Raises ValueError where no part has pairs.
    """
    given = {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    parts = {name: part for name, part in given.items() if part is not None and is_adapted(part)}
    if not parts:
        raise ValueError("no part has low-rank pairs: there is nothing to save")
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in _pairs(name, part).items()}
    settings = {f"{name}.{key}": value for name, part in parts.items() for key, value in _settings(part).items()}
    metadata = {"format": "pt", METADATA: json.dumps(settings, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_file(folder / LORA_FILE, lambda path: _write(tensors, path, metadata))
    return folder / LORA_FILE


def load_lora(pipe: Any, source: Path | str) -> None:
    """Puts the pairs of a file into a pipeline of diffusers, frozen and active; whichever trainer and version wrote it.

    source: a safetensors file, or a folder that holds LORA_FILE.

    Raises UsageError for what is no such file, and where a pair of it has no layer in the pipeline: diffusers would go
    on without it.
    """
    path = Path(source).expanduser()
    path = path / LORA_FILE if path.is_dir() else path
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file of low-rank pairs; give a folder with {LORA_FILE}, or the file"
        )
    with readable(path), safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        settings = json.loads((file.metadata() or {}).get(METADATA, "null")) or {}
        weights, alphas, _ = pipe.lora_state_dict(weights, unet_config=pipe.unet.config, return_lora_metadata=True)
    by_part = {name: _of_part(name, weights) for name in PARTS}
    _require_layers(pipe, {name: _peft_names(name, found) for name, found in by_part.items()}, set(weights), path)
    with readable(path), quiet(), seeded(0):  # what is drawn is overwritten
        for name, found in by_part.items():
            if found:
                _put(pipe, name, found, _of_part(name, settings) or None, alphas)


def _put(
    pipe: Any, name: str, weights: dict[str, Tensor], settings: dict[str, Any] | None, alphas: dict[str, float] | None
) -> None:
    part = getattr(pipe, name)
    if name != "unet":
        weights = text_keys.fitted(_peft_names(name, weights), part)
        settings = settings and text_keys.fitted_settings(settings, part)
    prefixed = {f"{name}.{key}": value for key, value in weights.items()}
    named = settings and {f"{name}.{key}": value for key, value in settings.items()}
    options = {"metadata": named, "network_alphas": alphas if settings is None else None}
    if name == "unet":
        part.load_lora_adapter(prefixed, prefix=name, **options)
    else:
        pipe.load_lora_into_text_encoder(prefixed, text_encoder=part, prefix=name, **options)
    part.requires_grad_(False)


def _require_layers(pipe: Any, by_part: Mapping[str, dict[str, Tensor]], names: set[str], path: Path) -> None:
    found, lost = 0, [name for name in sorted(names) if not name.startswith(tuple(f"{part}." for part in PARTS))]
    for name, weights in by_part.items():
        part = getattr(pipe, name, None)
        layers = {} if part is None else dict(part.named_modules())
        named = text_keys.fitted(weights, part) if name != "unet" and part is not None else weights
        unknown = [key for key in named if key.partition(".lora_")[0] not in layers]
        lost += [f"{name}.{key}" for key in unknown]
        found += len(named) - len(unknown)
    if lost or not found:
        first = f" (the first: {lost[0]})" if lost else ""
        raise UsageError(
            f"{path} does not fit the model: {len(lost)} of {len(names)} weights have no layer in it{first}; use the "
            "base model that these pairs were trained on"
        )


def _of_part(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in entries.items() if key.startswith(f"{name}.")}


def _peft_names(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As peft names pairs, of any of the forms that diffusers has had."""
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    if not weights or any(".lora_A." in key for key in weights):
        return weights
    if name == "unet":
        return convert_unet_state_dict_to_peft(weights)
    return convert_state_dict_to_peft(convert_state_dict_to_diffusers(weights))


def _pairs(name: str, part: Any) -> dict[str, Tensor]:
    found = get_peft_model_state_dict(
        part,
        adapter_name=ADAPTER,
        save_embedding_layers=False,  # True may ask the hub
    )
    return found if name == "unet" else text_keys.portable(found)


def _settings(part: Any) -> dict[str, Any]:
    """What makes the same pairs again; names of modules as sorted lists."""
    settings = part.peft_config[ADAPTER].to_dict()
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if hasattr(value, "value") else value  # of an Enum


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def _switch(layers: Sequence[BaseTunerLayer], out: Sequence[bool]) -> None:
    for layer, is_out in zip(layers, out, strict=True):
        layer.enable_adapters(not is_out)


def _shapes(part: nn.Module) -> dict[str, tuple[int, int]]:
    """Of the layers that can have pairs: outputs, and inputs of one output."""
    return {
        name: (module.weight.shape[0], module.weight[0].numel())
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
