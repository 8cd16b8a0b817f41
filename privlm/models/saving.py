"""What training has changed of a model, as a folder: no more than that, and all of it.

    trained.safetensors    trained parameters, the weights that RGP steps (not their factors, which are chosen anew at
                           each step), every persistent buffer
    adapter/               what peft has put into it as peft's own files, for any other tool; named after the module
                           that holds it where the adapter is on a part of the model. Virtual tokens are in both: peft
                           saves what they give, and not the parameters

A tied parameter is one parameter, saved once under its first name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.models.loading import readable
from privlm.privacy.rgp import Reparametrization

TRAINED = "trained.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_trained(model: nn.Module, folder: Path, digest: str) -> None:
    """Writes into `folder` what training can have changed of `model`.

    digest: names the untrained model; `load_trained` refuses another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in _adapted(model).items():
        part.save_pretrained(str(folder / name), save_embedding_layers=False)  # True may ask the hub
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in _own(model).items()}
    save_file(own, folder / TRAINED, metadata={"digest": digest})


def load_trained(model: nn.Module, folder: Path, digest: str) -> None:
    """Puts what `save_trained` wrote into `model`, which was built like the one that was saved; all of it or nothing.

    Raises:
        UsageError: a file is missing or damaged, holds other parameters, shapes or dtypes than this model trains, or
            was saved from another untrained model.
    """
    targets = {folder / TRAINED: _own(model)}
    for name, part in _adapted(model).items():
        targets[folder / name / ADAPTER_WEIGHTS] = get_peft_model_state_dict(part, save_embedding_layers=False)
    for path in targets:
        if not path.is_file():
            raise UsageError(f"{folder} holds no trained model with this adapter: no {path.relative_to(folder)}")
    with readable(folder):
        saved = {path: load_file(path) for path in targets}
        with safe_open(folder / TRAINED, "pt") as file:
            trained_from = (file.metadata() or {}).get("digest")
    for path, tensors in targets.items():
        _require_fit(saved[path], tensors, path)
    if trained_from != digest:
        raise UsageError(
            f"{folder} was trained from other weights, or with another adapter, head or seed: give the configuration "
            "that it was trained with"
        )
    with torch.no_grad():
        for path, tensors in targets.items():
            for name, tensor in tensors.items():
                tensor.copy_(saved[path][name])


def _adapted(model: nn.Module) -> dict[str, PeftModel]:
    """Folder name -> the part of the model that peft has wrapped."""
    return {name or "adapter": part for name, part in model.named_modules() if isinstance(part, PeftModel)}


def _own(model: nn.Module) -> dict[str, Tensor]:
    """What training can change and peft does not save, by name."""
    stepped = Reparametrization(model).stepped(
        {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    )
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    of_adapters = {
        tensor.data_ptr()
        for part in _adapted(model).values()
        for tensor in get_peft_model_state_dict(part, save_embedding_layers=False).values()
    }
    return {name: tensor for name, tensor in (stepped | buffers).items() if tensor.data_ptr() not in of_adapters}


def _require_fit(saved: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    for name in sorted(saved.keys() ^ tensors.keys()):
        problem = f"holds no {name}" if name in tensors else f"holds {name}, which this model does not train"
        raise UsageError(f"{path} does not fit the model: it {problem}")
    for name, tensor in tensors.items():
        found, expected = _kind(saved[name]), _kind(tensor)
        if found != expected:
            raise UsageError(f"{path} does not fit the model: {name} is {found}, not {expected}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
