"""Checkpoints of training: written whole or not at all, the last few kept, a damaged one stepped over."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from privlm import files

logger = logging.getLogger("privlm")


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    tensors: name -> trainable parameter. optimizer: its state_dict. progress: numbers of the loop (JSON).
    """

    step: int
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints `step-N` of one stage of training in one folder.

    rewind: told the step from which training goes on, so that records of later steps can be dropped.
    """

    def __init__(self, directory: Path, *, keep: int = 2, rewind: Callable[[int], None] | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = directory
        self.keep = keep
        self.rewind = rewind or (lambda step: None)

    def save(
        self, step: int, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any], progress: Mapping[str, Any]
    ) -> None:
        """Writes a checkpoint durably, then removes the oldest beyond `keep`."""
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

        def fill(folder: Path) -> None:
            save_file(content, folder / "model.safetensors")
            torch.save(optimizer, folder / "optimizer.pt")
            (folder / "progress.json").write_text(json.dumps(dict(progress) | {"step": step}), encoding="utf-8")

        files.write_directory(self.directory / f"step-{step}", fill)
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(self.directory / f"step-{old}")

    def load(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None."""
        for step in reversed(self._steps()):
            folder = self.directory / f"step-{step}"
            try:
                progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
                return Checkpoint(
                    step=progress["step"],
                    tensors=load_file(folder / "model.safetensors"),
                    optimizer=torch.load(folder / "optimizer.pt", weights_only=True),
                    progress=progress,
                )
            except Exception as error:  # whatever a damaged file makes its reader raise
                logger.warning("checkpoint %s cannot be read (%s): the one before it is used", folder, error)
        return None

    def last_step(self) -> int:
        """Step of the newest checkpoint, 0 without one."""
        return max(self._steps(), default=0)

    def _steps(self) -> list[int]:
        found = self.directory.glob("step-*") if self.directory.is_dir() else []
        return sorted(int(folder.name.removeprefix("step-")) for folder in found)
