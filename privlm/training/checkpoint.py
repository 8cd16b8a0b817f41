"""Checkpoints of training: written whole or not at all, the last few kept, each file known by its digest."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from privlm import files
from privlm.errors import PrivLMError

logger = logging.getLogger("privlm")


class UnusableCheckpoint(PrivLMError):
    """A checkpoint that is gone, damaged, or of an older version."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps.

    tensors: name -> what training changes in the model: stepped parameters and persistent buffers.
    optimizer, objective: their state_dict. progress: numbers of the loop (JSON).
    best_step: an earlier step whose checkpoint must stay as long as this one.
    """

    step: int
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    objective: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    best_step: int | None = None


class CheckpointStore:
    """The checkpoints `step-N` of one stage of training in one folder.

    Everything random is a function of a key, so that a checkpoint holds no state of a generator.

    rewind: told the step from which training goes on, so that records of later steps can be dropped.
    """

    def __init__(self, directory: Path, *, keep: int = 2, rewind: Callable[[int], None] | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.directory = directory
        self.keep = keep
        self.rewind = rewind or (lambda step: None)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint durably, then removes the oldest beyond `keep` that no kept one names as its best, and
        later ones, which are of a try that was given up.

        Raises TypeError for a state of the objective that could not be read again.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        numbers = {"step": checkpoint.step, "best_step": checkpoint.best_step, "progress": checkpoint.progress}

        def fill(folder: Path) -> None:
            save_file(tensors, folder / "model.safetensors")
            torch.save(checkpoint.optimizer, folder / "optimizer.pt")
            _save_state(checkpoint.objective, folder / "objective.pt")
            (folder / "progress.json").write_text(json.dumps(numbers), encoding="utf-8")
            files.write_digests(folder)

        files.write_directory(self._folder(checkpoint.step), fill)
        self._tidy(checkpoint.step)

    def load(self, device: torch.device | str = "cpu") -> Checkpoint | None:
        """The newest checkpoint that is what was written, None where there are none.

        device: where states that were on a GPU go. Raises UnusableCheckpoint where there are checkpoints and all are
        damaged: a new start would forget what the steps so far have cost.
        """
        damages: list[str] = []
        for step in reversed(self._steps()):
            if damages:
                logger.warning("%s: the checkpoint before it is used", damages[-1])
            try:
                return self.read(step, device)
            except UnusableCheckpoint as damage:
                damages.append(str(damage))
        if damages:
            raise UnusableCheckpoint(
                f"no checkpoint in {self.directory} can be used ({'; '.join(damages)}): restore the folder from a "
                "copy, or start again with --force (as a library: in another folder)"
            )
        return None

    def read(self, step: int, device: torch.device | str = "cpu") -> Checkpoint:
        """The checkpoint of one step. Raises UnusableCheckpoint where it is not what was written."""
        folder = self._folder(step)
        self.verify(step)

        def place(storage: Any, location: str) -> Any:
            return storage if location == "cpu" else torch.serialization.default_restore_location(storage, str(device))

        try:
            numbers = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            return Checkpoint(
                tensors=load_file(folder / "model.safetensors"),
                optimizer=torch.load(folder / "optimizer.pt", weights_only=True, map_location=place),
                objective=torch.load(folder / "objective.pt", weights_only=True, map_location=place),
                **numbers,
            )
        except Exception as error:  # whatever a file of another version makes its reader raise
            raise UnusableCheckpoint(f"checkpoint {folder} cannot be read ({error})") from error

    def verify(self, step: int) -> None:
        """Raises UnusableCheckpoint where a file of the checkpoint is not the one that was written."""
        folder = self._folder(step)
        try:
            wrong = files.damaged_files(folder)
        except (OSError, ValueError) as error:
            raise UnusableCheckpoint(f"checkpoint {folder} cannot be read ({files.DIGESTS}: {error})") from error
        if wrong:
            raise UnusableCheckpoint(f"checkpoint {folder} is damaged ({', '.join(wrong)}: not what was written)")

    def last_step(self) -> int:
        """Step of the newest checkpoint, 0 without one."""
        return max(self._steps(), default=0)

    def _tidy(self, newest: int) -> None:
        steps = self._steps()
        kept = set([step for step in steps if step <= newest][-self.keep :])
        kept |= {self._best_step(step) for step in kept}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self._folder(step))

    def _best_step(self, step: int) -> int:
        try:
            best = json.loads((self._folder(step) / "progress.json").read_text(encoding="utf-8"))["best_step"]
        except (OSError, ValueError, KeyError, TypeError):  # damaged, so that nothing is kept for it
            return step
        return step if best is None else best

    def _folder(self, step: int) -> Path:
        return self.directory / f"step-{step}"

    def _steps(self) -> list[int]:
        found = self.directory.glob("step-*") if self.directory.is_dir() else []
        numbers = [folder.name.removeprefix("step-") for folder in found]
        return sorted(int(number) for number in numbers if number.isdecimal())


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    """Raises TypeError for what would not be read again: only plain values are, since a pickle may run anything."""
    try:
        torch.save(dict(state), path)
        torch.load(path, weights_only=True, mmap=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        raise TypeError(
            "state_dict() of the objective: a checkpoint holds tensors, numbers, texts, and lists and dicts of them "
            f"({str(error).splitlines()[0]})"
        ) from error
