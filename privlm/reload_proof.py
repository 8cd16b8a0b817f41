"""Proof that a saved model is the one that was trained: it is built anew, read back and compared, bit for bit.

What a run saves is trusted for years; what saving loses (a head, a buffer, a tie, the chosen step) is seen today.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.errors import PrivLMError
from privlm.models.evaluation_mode import evaluation_mode
from privlm.training.objective import ExampleRandom, Objective

NUM_EXAMPLES = 32
NUM_NAMED = 3  # of many that differ


class NotReproducedError(PrivLMError):
    """The saved model is another than the trained one; the checkpoints of training are kept."""


@dataclass(frozen=True)
class Proof:
    """num_tensors: parameters and buffers that came back with their bytes; distance: of the trained ones from their
    first values, in the Euclidean norm.
    """

    num_tensors: int
    distance: float

    def __str__(self) -> str:
        equal = f"read back equal: {self.num_tensors} parameters and buffers"
        return f"{equal}; {self.distance:.4g} from the initial weights" if self.distance else f"{equal}; nothing moved"


def distance(trained: nn.Module, initial: nn.Module) -> float:
    """Euclidean distance of two models with the same parameters."""
    before = state(initial)
    squares = [
        (value.double() - before[name].to(value.device).double()).square().sum()
        for name, value in state(trained).items()
        if value.is_floating_point() and name in before and before[name].shape == value.shape
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def compare_states(trained: nn.Module, loaded: nn.Module) -> int:
    """Every parameter and persistent buffer has the same name, dtype and bytes, and ties are ties; returns how many.

    Raises NotReproducedError naming what differs.
    """
    wanted, found = state(trained), state(loaded)
    _refuse("missing after loading", sorted(wanted.keys() - found.keys()))
    _refuse("only there after loading", sorted(found.keys() - wanted.keys()))
    _refuse("of another dtype", [name for name in wanted if wanted[name].dtype != found[name].dtype])
    _refuse("not the trained values", [name for name in wanted if not _same_bytes(wanted[name], found[name])])
    lost = _ties(wanted) ^ _ties(found)
    _refuse("tied in one of the two only", sorted(" = ".join(sorted(names)) for names in lost))
    return len(wanted)


def compare_losses(trained: nn.Module, loaded: nn.Module, losses: ProofLosses) -> None:
    """The losses of some fixed examples are equal, bit for bit. Raises NotReproducedError."""
    before, after = losses(trained), losses(loaded)
    if not torch.equal(before.nan_to_num(), after.nan_to_num()):
        worst = float((before - after).abs().max())
        raise NotReproducedError(
            f"the saved model gives other losses than the trained one (up to {worst:.3g} apart on {len(before)} "
            "examples): something that it computes with is not saved"
        )


@dataclass(frozen=True)
class ProofLosses:
    """The objective's losses of NUM_EXAMPLES fixed examples of `data`: model -> [n], in evaluation mode.

    autocast: context manager of the precision that was trained with.
    """

    objective: Objective
    data: Any
    seed: int
    micro_batch_size: int
    autocast: Any = contextlib.nullcontext

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Tensor:
        indices = np.unique(np.linspace(0, len(self.data) - 1, NUM_EXAMPLES).round().astype(np.int64))
        device = next(model.parameters()).device
        pieces = []
        with evaluation_mode(model):
            for start in range(0, len(indices), self.micro_batch_size):
                piece = indices[start : start + self.micro_batch_size]
                batch = {name: tensor.to(device) for name, tensor in self.data.batch(piece).items()}
                with self.autocast():
                    per_example = self.objective.losses(model, batch, ExampleRandom(self.seed, 0, piece))
                pieces.append(per_example.loss.float().cpu())
        return torch.cat(pieces)


def compare_evaluation(found: Mapping[str, float], logged: Mapping[str, float], step: int) -> None:
    """The model of the step that was chosen as the best is the saved one. Raises NotReproducedError."""
    differing = [name for name in logged if found[name] != logged[name]]
    if differing:
        values = ", ".join(f"{name} {found[name]:.6g}, logged {logged[name]:.6g}" for name in differing)
        raise NotReproducedError(f"the saved model is not that of step {step}, the best: {values}")


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied one under each of its names."""
    return {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    first, second = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b.to(a.device)))
    return torch.equal(first, second)


def _ties(tensors: Mapping[str, Tensor]) -> set[frozenset[str]]:
    by_place: dict[int, set[str]] = {}
    for name, value in tensors.items():
        if value.numel():
            by_place.setdefault(value.data_ptr(), set()).add(name)
    return {frozenset(names) for names in by_place.values() if len(names) > 1}


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
        raise NotReproducedError(
            f"the saved model is not the trained one; {what}: {', '.join(names[:NUM_NAMED])}{more}"
        )
