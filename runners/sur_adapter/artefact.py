"""The trained adapter as two files, which say what they were made for.

adapter.safetensors     `adapter....` and, where a language model had a part, `projection....`
adapter_config.json     sealed: its layers, the base that it stands before, the language model, the losses
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privlm import files
from privlm.errors import UsageError
from privlm.models.loading import readable

from .adapter import SurAdapter

WEIGHTS, ABOUT = "adapter.safetensors", "adapter_config.json"
FORMAT = 1


@dataclass(frozen=True)
class Artefact:
    """about: adapter_config.json."""

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def adapter(self) -> SurAdapter:
        """In evaluation mode."""
        width = self.about["base"]["width"]
        adapter = SurAdapter.of(SimpleNamespace(**self.about["adapter"]), width)
        put(adapter, {name.removeprefix("adapter."): value for name, value in self._of("adapter").items()}, WEIGHTS)
        return adapter.eval()

    def require_base(self, width: int, digest: str, *, allow_other: bool = False) -> None:
        """Raises UsageError where the adapter was trained before another UNet: of other states, or of other weights.

        width: of the text states of the pipeline at hand. digest: of its content.
        """
        base = self.about["base"]
        if base["width"] != width:
            raise UsageError(
                f"the adapter was trained for text states of {base['width']} numbers ({base['name']}), and this model "
                f"has {width}: choose a model of that width"
            )
        if base["digest"] != digest and not allow_other:
            raise UsageError(
                f"the adapter was trained before another model ({base['name']}, {base['digest'][:8]}, not "
                f"{digest[:8]}): choose that one, or say allow_other_base=true"
            )

    def _of(self, part: str) -> dict[str, Tensor]:
        return {name: value for name, value in self.tensors.items() if name.startswith(f"{part}.")}


def write(folder: Path, parts: Mapping[str, nn.Module], about: Mapping[str, Any]) -> None:
    """Into a folder that is written as a whole. parts: `adapter`, and `projection` where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": str(FORMAT)})
    digest = files.sha256_file(folder / WEIGHTS)
    files.write_json(folder / ABOUT, {"format": FORMAT, "weights": digest, **about})


def read(folder: Path) -> Artefact:
    """Raises UsageError where a file is absent, damaged or of another version."""
    about = files.read_json(folder / ABOUT)
    if about is None or not (folder / WEIGHTS).is_file():
        raise UsageError(f"{folder} holds no SUR adapter: no {ABOUT if about is None else WEIGHTS}")
    if about.get("format") != FORMAT:
        raise UsageError(f"{folder / ABOUT} is of format {about.get('format')}; this version reads {FORMAT}")
    if files.sha256_file(folder / WEIGHTS) != about["weights"]:
        raise UsageError(f"{folder / WEIGHTS} has changed since it was saved: copy it again, or train anew")
    with readable(folder):
        return Artefact(about, load_file(folder / WEIGHTS))


def put(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """All of it or nothing. Raises UsageError for names and shapes that are not the module's."""
    own = module.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        raise UsageError(f"{source} does not fit: it {'lacks' if name in own else 'also holds'} {name}")
    for name, value in own.items():
        if tensors[name].shape != value.shape or tensors[name].dtype != value.dtype:
            raise UsageError(f"{source} does not fit: {name} is {list(tensors[name].shape)}, not {list(value.shape)}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
