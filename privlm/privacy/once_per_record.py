"""One backward pass for each record, for what has no exact rule.

At the losses this is the definition of what is wanted. Most of the way can be saved: by torch.func on a module of one
input, or by beginning at the outputs of a module around the place. Either is used once it has given what the losses
give, record by record; and in every step the gradients of the records must add up to the ordinary gradient, which knows
of every use, else that step begins at the losses again.
Shapes: B records, n rows of a module's output, s the shape of whatever is differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privlm.privacy import clipping as clip
from privlm.privacy.inspection import UnsupportedModuleError
from privlm.privacy.tape import Call, Output

LOSSES = "losses"
RECOMPUTED = "recomputed"

Used = Sequence[tuple[Call, Tensor]]
Around = Sequence[tuple[Output, Tensor]]
"""With the gradients of the summed losses."""


@dataclass(frozen=True)
class Item:
    """What is differentiated once per record: a parameter, or the output of a call that all records share.

    total: its gradient of the summed losses. place: remembers how, from step to step.
    """

    place: Any
    module: nn.Module
    target: Any
    total: Tensor


@dataclass
class OncePerRecord:
    """Remembers, for one model, where it is right to begin.

    names: of modules. around: modules from the inside out, for each module. watched: whose outputs must be on the tape.
    """

    rules: Mapping[nn.Module, Mapping[str, clip.Rule]]
    names: Mapping[nn.Module, str]
    around: Mapping[nn.Module, Sequence[nn.Module]]
    watched: set[nn.Module] = field(default_factory=set)
    ways: dict[Any, Any] = field(default_factory=dict)
    """By place: LOSSES, RECOMPUTED, or a module with what its outputs looked like."""

    def gradients(
        self,
        loss_B: Tensor,
        items: Sequence[Item],
        used: Used,
        around: Around,
    ) -> list[Tensor]:
        """[B, *s] of each item."""
        size = len(loss_B)
        tolerance = _tolerance([g for _, g in [*used, *around]])
        by_way: dict[Any, list[int]] = {}
        for number, item in enumerate(items):
            by_way.setdefault(self.ways.get(item.place, LOSSES), []).append(number)
        by_way.pop(LOSSES, None)
        found: dict[int, Tensor] = {}
        for way, numbers in by_way.items():
            chosen = [items[number] for number in numbers]
            for number, item, gradient_Bs in zip(
                numbers, chosen, self._by(way, chosen, used, around, size), strict=True
            ):
                if gradient_Bs is not None and _adds_up(gradient_Bs, item.total, tolerance):
                    found[number] = gradient_Bs
        rest = [number for number in range(len(items)) if number not in found]
        if rest:
            defined = _differentiated([loss_B], [loss_B.new_ones(size)], [items[number] for number in rest], size)
            self._refuse_nonfinite([items[number] for number in rest], defined)
            for number, gradient_Bs in zip(rest, defined, strict=True):
                found[number] = gradient_Bs
                self._choose_way(items[number], gradient_Bs, used, around, tolerance)
        return [found[number] for number in range(len(items))]

    def _by(
        self,
        way: Any,
        items: Sequence[Item],
        used: Used,
        around: Around,
        size: int,
    ) -> Sequence[Tensor | None]:
        """[B, *s] of each item; None where this way does not lead there."""
        if way == RECOMPUTED:
            return [self._recomputed(item, used, size) for item in items]
        module, look = way
        inside = [(output.edge, g) for output, g in around if output.module is module]
        if look is None or look != _look([g for _, g in inside], size):
            return [None] * len(items)
        return _differentiated([edge for edge, _ in inside], [g for _, g in inside], items, size)

    def _recomputed(self, item: Item, used: Used, size: int) -> Tensor | None:
        """By torch.func; None where that module cannot be run record by record."""
        rules = self.rules.get(item.module, {})
        names = [name for name, rule in rules.items() if getattr(item.module, name) is item.target]
        calls = [(call, g) for call, g in used if call.module is item.module]
        if not names or not clip.is_general(rules[names[0]]):
            return None
        if any(call.input.ndim == 0 or len(call.input) != size or call.is_changed for call, _ in calls):
            return None
        try:
            each = [rules[names[0]](call.module, call.input, g) for call, g in calls]
        except clip.NoRuleError:
            return None
        dense = [part.gradient_Bs for part in each if isinstance(part, clip.Instantiated)]
        return torch.stack(dense).sum(0) if dense else None

    def _choose_way(
        self,
        item: Item,
        defined_Bs: Tensor,
        used: Used,
        around: Around,
        tolerance: float,
    ) -> None:
        """The cheapest way that gives what the losses give, for the steps to come."""
        if not defined_Bs.isfinite().all() or not defined_Bs.any():
            return
        candidates = self.around[item.module]
        if not self.watched.issuperset(candidates):
            self.watched.update(candidates)  # seen from the next step on
            return
        scale_B = norms(defined_Bs)
        size = len(defined_Bs)
        begins = [
            (module, _look([g for output, g in around if output.module is module], size)) for module in candidates
        ]
        for way in (RECOMPUTED, *begins):
            (gradient_Bs,) = self._by(way, [item], used, around, size)
            if gradient_Bs is not None and bool((norms(gradient_Bs - defined_Bs) <= tolerance * scale_B.max()).all()):
                self.ways[item.place] = way
                return
        self.ways[item.place] = LOSSES

    def _refuse_nonfinite(self, items: Sequence[Item], defined: Sequence[Tensor]) -> None:
        """A record that is not finite makes the gradients of all others so, through what is summed over rows."""
        if bad := [item for item, gradient_Bs in zip(items, defined, strict=True) if not gradient_Bs.isfinite().all()]:
            names = {self.names[item.module] for item in bad}
            raise UnsupportedModuleError(
                dict.fromkeys(
                    names, "a record's gradient is not finite, which reaches all others here: leave such records out"
                )
            )


def _look(gradients: Sequence[Tensor], size: int) -> tuple[bool, ...] | None:
    """For each output whether it has one row per record, or several; None where rows cannot belong to records.

    What was seen to be right for one row says nothing about the order of several.
    """
    if not gradients or any(g.ndim == 0 or len(g) % size for g in gradients):
        return None
    return tuple(len(g) == size for g in gradients)


def differentiate(
    outputs: Sequence[Any], targets: Sequence[Any], weights: Sequence[Tensor], *, retain_graph: bool = True
) -> Sequence[Tensor | None]:
    """Of sum(outputs * weights); None for what it does not depend on."""
    for target in targets:
        if isinstance(target, nn.Parameter):
            target.requires_grad_(True)  # the recomputation of a checkpoint leaves layers before their last hook
    return torch.autograd.grad(outputs, targets, weights, retain_graph=retain_graph, allow_unused=True)


def _only(g: Tensor, record: int, size: int) -> Tensor:
    """`g` [n, ...] with nothing but the rows of one of `size` records in it."""
    alone = torch.zeros_like(g)
    rows = slice(record * (len(g) // size), (record + 1) * (len(g) // size))
    alone[rows] = g[rows]
    return alone


def _differentiated(
    outputs: Sequence[Any], weights: Sequence[Tensor], items: Sequence[Item], size: int
) -> list[Tensor]:
    """[B, *s] of each item: for each record, the gradient of its rows of the outputs, with weights [n, ...]."""
    rows: list[list[Tensor]] = [[] for _ in items]
    for record in range(size):
        alone = [_only(weight, record, size) for weight in weights]
        gradients = differentiate(outputs, [item.target for item in items], alone)
        for row, item, gradient in zip(rows, items, gradients, strict=True):
            row.append(torch.zeros_like(item.total) if gradient is None else gradient)
    return [torch.stack(row) for row in rows]


def _tolerance(gradients: Iterable[Tensor]) -> float:
    """Of two ways to compute one gradient, relative to its norm."""
    if any(g.dtype in (torch.float16, torch.bfloat16) for g in gradients):
        return 5e-2
    return 1e-3 if torch.backends.cuda.matmul.allow_tf32 else 1e-4


def _adds_up(gradient_Bs: Tensor, total_s: Tensor, tolerance: float) -> bool:
    """Whether the gradients of the records sum to the ordinary gradient, which knows of every use.

    Where that is not finite nothing is known; records that are finite all the same were not reached by the others.
    """
    if not total_s.isfinite().all():
        return bool(gradient_Bs.isfinite().any())
    return bool((gradient_Bs.float().sum(0) - total_s).norm() <= tolerance * norms(gradient_Bs).sum())


def norms(x_Bs: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_Bs.float().reshape(len(x_Bs), -1), dim=1)
