"""The gradient of every record from what one forward pass left on the tape.

Three ways, from cheap to dear:

- a layer with an exact rule whose rows belong to the records: the rule, from its input and its output gradient;
- a module of one input that has no rule: torch.func on that module alone;
- everything else, such as a bare parameter beside children, a weight used outside its layer, or a table of positions
  that all records share: one backward pass for each record. It begins at the outputs of the smallest module around the
  place that has rows of records, else at the losses, where it is the definition of what is wanted.

Nothing is taken on trust. Whether rows belong to records is seen from losses that are weighted one by one; a module is
begun at, and torch.func used, once they have given what the losses give, record by record; and in every step the
gradients of the records must add up to the ordinary gradient, else that step begins at the losses again.
Shapes: B records, n rows of a layer's input, s the shape of whatever is differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from privlm.privacy import clipping as clip
from privlm.privacy.inspection import UnsupportedModuleError
from privlm.privacy.inspection import exact_rules as _exact

Rules = Mapping[nn.Module, Mapping[str, clip.Rule]]
Parts = dict[nn.Parameter, list[clip.PerRecordGradient]]

LOSSES = "losses"
RECOMPUTED = "recomputed"


@dataclass(frozen=True)
class Call:
    """One use of a layer in the forward pass.

    version: of its input, which must not change afterwards. is_copy: of rows that all records share, one for each.
    """

    module: nn.Module
    input: Tensor
    output_edge: GradientEdge
    version: int = 0
    is_copy: bool = False


@dataclass(frozen=True)
class Output:
    """A tensor that a module around something without rows of its own returned."""

    module: nn.Module
    edge: GradientEdge


@dataclass(frozen=True)
class _Item:
    """What is differentiated once per record: a parameter, or the output of a call that all records share.

    total: its gradient of the summed losses. place: remembers how, from step to step.
    """

    place: Any
    module: nn.Module
    target: Any
    total: Tensor


@dataclass
class PerRecord:
    """Remembers, for one model, which way is right where.

    names: of modules. parameters: the trainable ones by name. around: modules from the inside out, for each module.
    """

    rules: Rules
    names: Mapping[nn.Module, str]
    parameters: Mapping[str, nn.Parameter]
    around: Mapping[nn.Module, Sequence[nn.Module]]
    watched: set[nn.Module] = field(default_factory=set)
    _has_rows: dict[Any, bool] = field(default_factory=dict)
    _ways: dict[Any, Any] = field(default_factory=dict)
    _holders: dict[nn.Parameter, nn.Module] = field(default_factory=dict)
    _loose: set[nn.Parameter] = field(default_factory=set)
    """Parameters with a use that no exact rule covers."""
    _has_looked: bool = False

    def __post_init__(self) -> None:
        trained = set(self.parameters.values())
        for module in self.names:
            exact = _exact(self.rules.get(module, {}))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in trained and name not in exact and parameter not in self._loose:
                    self._loose.add(parameter)
                    self._holders[parameter] = module
                    self.watched.update(self.around[module])
                self._holders.setdefault(parameter, module)

    def gradients(self, loss_B: Tensor, calls: Sequence[Call], outputs: Sequence[Output]) -> Parts:
        """Per-record gradients of the parameters that the losses depend on, merged.

        Raises UnsupportedModuleError where they cannot be had exactly.
        """
        parameters = list(self.parameters.values())
        needs_more = len(loss_B) > 1 and not self._needs_one_pass(calls, len(loss_B))
        inputs: list[Any] = [
            *(call.output_edge for call in calls),
            *parameters,
            *(output.edge for output in outputs if needs_more),
        ]
        found = torch.autograd.grad(loss_B.sum(), inputs, retain_graph=needs_more, allow_unused=True)
        of_calls, of_parameters, of_outputs = _cut(found, len(calls), len(parameters))
        used = [(call, g) for call, g in zip(calls, of_calls, strict=True) if g is not None]
        totals = {parameter: g for parameter, g in zip(parameters, of_parameters, strict=True) if g is not None}
        around = [(output, g) for output, g in zip(outputs, of_outputs, strict=False) if g is not None]
        self._refuse_changed_inputs(call for call, _ in used)
        if len(loss_B) == 1:
            return self._of_one_record(used, totals)
        if needs_more:
            self._look_for_rows(loss_B, used)
        elif totals:
            names = [name for name, parameter in self.parameters.items() if parameter in totals]
            raise UnsupportedModuleError(
                dict.fromkeys(names, "used outside its layer in some batches and not in others")
            )
        self._loose.update(totals)
        return self._of_records(loss_B, used, totals, around)

    def ways(self) -> dict[str, str]:
        """What no exact rule covers, by name: "losses", "torch.func", or the class of the module where it begins."""
        named = {id(parameter): name for name, parameter in self.parameters.items()}
        return {
            named.get(id(place)) or self.names[place[0]]: {LOSSES: LOSSES, RECOMPUTED: "torch.func"}.get(way)
            or type(way).__name__
            for place, way in self._ways.items()
        }

    # Every record has rows of its own, or every row is its own.

    def _of_one_record(self, used: Sequence[tuple[Call, Tensor]], totals: Mapping[nn.Parameter, Tensor]) -> Parts:
        parts: Parts = {}
        for call, g in used:
            for name, rule in _exact(self.rules[call.module]).items():
                part = self._apply(rule, call, g, 1)
                parts.setdefault(getattr(call.module, name), []).append(part)
        for parameter, total in totals.items():
            parts.setdefault(parameter, []).append(clip.Instantiated(total.float()[None]))
        return _merged(parts)

    def _of_records(
        self,
        loss_B: Tensor,
        used: Sequence[tuple[Call, Tensor]],
        totals: Mapping[nn.Parameter, Tensor],
        around: Sequence[tuple[Output, Tensor]],
    ) -> Parts:
        size = len(loss_B)
        parts: Parts = {}
        shared: list[Call] = []
        items: list[_Item] = []
        for call, g in used:
            exact = _exact(self.rules[call.module])
            if exact and not self._rows_are_of_records(call, g, loss_B):
                number = sum(before.module is call.module for before in shared)
                shared.append(call)
                items.append(_Item((call.module, number), call.module, call.output_edge, g))
                continue
            for name, rule in exact.items():
                parts.setdefault(getattr(call.module, name), []).append(self._apply(rule, call, g, size))
        items += [_Item(parameter, self._holders[parameter], parameter, total) for parameter, total in totals.items()]
        gradients = self._once_per_record(loss_B, items, used, around)
        for call, gradient_Bs in zip(shared, gradients, strict=False):
            for name, rule in _exact(self.rules[call.module]).items():
                each = [self._apply(rule, call, g, 1) for g in gradient_Bs]
                parts.setdefault(getattr(call.module, name), []).append(clip.stacked(each))
        for parameter, gradient_Bs in zip(totals, gradients[len(shared) :], strict=True):
            parts.setdefault(parameter, []).append(clip.Instantiated(gradient_Bs.float()))
        return _merged(parts)

    def _apply(self, rule: clip.Rule, call: Call, g: Tensor, num_records: int) -> clip.PerRecordGradient:
        x = call.input
        if not clip.has_rows(call.module, x):
            x, g = x[None], g[None]
        try:
            return clip.grouped(rule(call.module, x, g), num_records)
        except clip.NoRuleError as error:
            raise UnsupportedModuleError({self.names[call.module]: str(error)}) from error

    # Which rows belong to which record

    def _needs_one_pass(self, calls: Iterable[Call], size: int) -> bool:
        return (
            self._has_looked
            and not self._loose
            and all(_may_have_rows(call, size) and self._has_rows.get(_place(call), False) for call in calls)
        )

    def _rows_are_of_records(self, call: Call, g: Tensor, loss_B: Tensor) -> bool:
        """As far as is known; what nothing is known of yet counts where it could make no difference."""
        if not _may_have_rows(call, len(loss_B)):
            return False
        known = self._has_rows.get(_place(call))
        return known if known is not None else not g.any() or not (g.isfinite().any() or loss_B.isfinite().any())

    def _look_for_rows(self, loss_B: Tensor, used: Sequence[tuple[Call, Tensor]]) -> None:
        """Rows belong to a record where they are reached by its loss alone.

        The losses are weighted by powers of two, once for each binary digit of a record's number, so that any two
        records get different weights once; a row that only its own record reaches follows its record's weight exactly.
        """
        size = len(loss_B)
        unknown = []
        for call, g in used:
            if not _may_have_rows(call, size):
                self._has_rows[_place(call)] = False  # not of this batch only: it may look otherwise in another
            elif _place(call) not in self._has_rows and _tells(g):
                unknown.append((call, g))
        follows = [True] * len(unknown)
        for digit in range(math.ceil(math.log2(size)) if unknown else 0):
            weight_B = torch.tensor([2.0 if i >> digit & 1 else 1.0 for i in range(size)]).to(loss_B)
            edges = [call.output_edge for call, _ in unknown]
            found = torch.autograd.grad(loss_B, edges, weight_B, retain_graph=True)
            for number, ((_, g), weighted) in enumerate(zip(unknown, found, strict=True)):
                weight_n = weight_B.to(g).repeat_interleave(len(g) // size).view(-1, *[1] * (g.ndim - 1))
                scale = float(g.nan_to_num(0.0, 0.0, 0.0).abs().max())
                follows[number] &= torch.allclose(weighted, g * weight_n, rtol=1e-4, atol=1e-6 * scale, equal_nan=True)
        for (call, _), follow in zip(unknown, follows, strict=True):
            self._has_rows[_place(call)] = self._has_rows.get(_place(call), True) and follow
        self._has_looked = True

    # One backward pass for each record

    def _once_per_record(
        self,
        loss_B: Tensor,
        items: Sequence[_Item],
        used: Sequence[tuple[Call, Tensor]],
        around: Sequence[tuple[Output, Tensor]],
    ) -> list[Tensor]:
        """[B, *s] of each item."""
        size = len(loss_B)
        tolerance = _tolerance([g for _, g in [*used, *around]])
        by_way: dict[Any, list[int]] = {}
        for number, item in enumerate(items):
            by_way.setdefault(self._ways.get(item.place, LOSSES), []).append(number)
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
        items: Sequence[_Item],
        used: Sequence[tuple[Call, Tensor]],
        around: Sequence[tuple[Output, Tensor]],
        size: int,
    ) -> Sequence[Tensor | None]:
        """[B, *s] of each item; None where this way does not lead there."""
        if way == RECOMPUTED:
            return [self._recomputed(item, used, size) for item in items]
        inside = [(output.edge, g) for output, g in around if output.module is way]
        if not inside or any(g.ndim == 0 or len(g) % size for _, g in inside):
            return [None] * len(items)
        return _differentiated([edge for edge, _ in inside], [g for _, g in inside], items, size)

    def _recomputed(self, item: _Item, used: Sequence[tuple[Call, Tensor]], size: int) -> Tensor | None:
        """By torch.func; None where that module cannot be run record by record."""
        rules = self.rules.get(item.module, {})
        names = [name for name, rule in rules.items() if getattr(item.module, name) is item.target]
        calls = [(call, g) for call, g in used if call.module is item.module]
        if not names or not clip.is_general(rules[names[0]]):
            return None
        if any(call.input.ndim == 0 or len(call.input) != size or _is_changed(call) for call, _ in calls):
            return None
        try:
            each = [rules[names[0]](call.module, call.input, g) for call, g in calls]
        except clip.NoRuleError:
            return None
        return (
            torch.stack([part.gradient_Bs for part in each if isinstance(part, clip.Instantiated)]).sum(0)
            if each
            else None
        )

    def _choose_way(
        self,
        item: _Item,
        defined_Bs: Tensor,
        used: Sequence[tuple[Call, Tensor]],
        around: Sequence[tuple[Output, Tensor]],
        tolerance: float,
    ) -> None:
        """The cheapest way that gives what the losses give, for the steps to come."""
        if not defined_Bs.isfinite().all() or not defined_Bs.any():
            return
        candidates = self.around[item.module]
        if not self.watched.issuperset(candidates):
            self.watched.update(candidates)  # seen from the next step on
            return
        scale_B = _norms(defined_Bs)
        for way in (RECOMPUTED, *candidates):
            (gradient_Bs,) = self._by(way, [item], used, around, len(defined_Bs))
            if gradient_Bs is not None and bool((_norms(gradient_Bs - defined_Bs) <= tolerance * scale_B.max()).all()):
                self._ways[item.place] = way
                return
        self._ways[item.place] = LOSSES

    # Refusals

    def _refuse_changed_inputs(self, calls: Iterable[Call]) -> None:
        changed = {
            self.names[call.module]: "its input is changed in place after its use: change a copy"
            for call in calls
            if any(map(clip.reads_input, _exact(self.rules[call.module]).values())) and _is_changed(call)
        }
        if changed:
            raise UnsupportedModuleError(changed)

    def _refuse_nonfinite(self, items: Sequence[_Item], defined: Sequence[Tensor]) -> None:
        """A record that is not finite makes the gradients of all others so, through what is summed over rows."""
        if bad := [item for item, gradient_Bs in zip(items, defined, strict=True) if not gradient_Bs.isfinite().all()]:
            names = {self.names[item.module] for item in bad}
            raise UnsupportedModuleError(
                dict.fromkeys(
                    names, "a record's gradient is not finite, which reaches all others here: leave such records out"
                )
            )


def version(x: Tensor) -> int:
    """How often the memory of `x` was changed in place; views and detached copies share the count."""
    return 0 if x.is_inference() else x._version


def _is_changed(call: Call) -> bool:
    return version(call.input) != call.version


def _place(call: Call) -> Any:
    return call.module, call.input.ndim, call.is_copy


def _may_have_rows(call: Call, size: int) -> bool:
    return clip.has_rows(call.module, call.input) and len(call.input) % size == 0 and len(call.input) > 0


def _merged(parts: Parts) -> Parts:
    return {parameter: clip.merge(clip.of_one_form(found, parameter.shape)) for parameter, found in parts.items()}


def _cut(values: Sequence[Any], *lengths: int) -> list[Sequence[Any]]:
    """Pieces of these lengths, and the rest."""
    pieces = []
    for length in lengths:
        pieces.append(values[:length])
        values = values[length:]
    return [*pieces, values]


def _tells(g: Tensor) -> bool:
    """Whether some row says where it comes from: a record that is not finite says so of all rows that it reaches."""
    rows = g.reshape(len(g), -1)
    return bool((rows.isfinite().all(1) & rows.any(1)).any())


def _only(g: Tensor, record: int, size: int) -> Tensor:
    """`g` [n, ...] with nothing but the rows of one of `size` records in it."""
    alone = torch.zeros_like(g)
    rows = slice(record * (len(g) // size), (record + 1) * (len(g) // size))
    alone[rows] = g[rows]
    return alone


def _differentiated(
    outputs: Sequence[Any], weights: Sequence[Tensor], items: Sequence[_Item], size: int
) -> list[Tensor]:
    """[B, *s] of each item: for each record, the gradient of its rows of the outputs, with weights [n, ...]."""
    rows: list[list[Tensor]] = [[] for _ in items]
    for record in range(size):
        gradients = torch.autograd.grad(
            outputs,
            [item.target for item in items],
            [_only(weight, record, size) for weight in weights],
            retain_graph=True,
            allow_unused=True,
        )
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
    return bool((gradient_Bs.float().sum(0) - total_s).norm() <= tolerance * _norms(gradient_Bs).sum())


def _norms(x_Bs: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x_Bs.float().reshape(len(x_Bs), -1), dim=1)
