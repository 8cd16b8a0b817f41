"""The gradient of every record from what one forward pass left on the tape.

A layer with an exact rule whose rows belong to the records takes its rule, which needs the input and the gradient of
the output. Everything else, such as a bare parameter beside children, a weight used outside its layer or a table of
positions that all records share, is differentiated once per record. Whether rows belong to records is seen, not taken
on trust, from losses that are weighted one by one.
Shapes: B records, n rows of a layer's input, s the shape of whatever is differentiated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privlm.privacy import clipping as clip
from privlm.privacy.inspection import UnsupportedModuleError
from privlm.privacy.inspection import exact_rules as _exact
from privlm.privacy.once_per_record import LOSSES, RECOMPUTED, Around, Item, OncePerRecord, Used, differentiate, norms
from privlm.privacy.tape import Call, Output

Rules = Mapping[nn.Module, Mapping[str, clip.Rule]]
Parts = dict[nn.Parameter, list[clip.PerRecordGradient]]


@dataclass
class PerRecord:
    """Remembers, for one model, which way is right where.

    names: of modules. parameters: the trainable ones by name. around: modules from the inside out, for each module.
    """

    rules: Rules
    names: Mapping[nn.Module, str]
    parameters: Mapping[str, nn.Parameter]
    around: Mapping[nn.Module, Sequence[nn.Module]]
    _has_rows: dict[Any, bool] = field(default_factory=dict)
    _without_rows: set[Any] = field(default_factory=set)
    _holders: dict[nn.Parameter, nn.Module] = field(default_factory=dict)
    _loose: set[nn.Parameter] = field(default_factory=set)
    """Parameters with a use that no exact rule covers."""
    _has_looked: bool = False

    def __post_init__(self) -> None:
        self._once = OncePerRecord(self.rules, self.names, self.around)
        trained = set(self.parameters.values())
        for module in self.names:
            exact = _exact(self.rules.get(module, {}))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter in trained and name not in exact and parameter not in self._loose:
                    self._loose.add(parameter)
                    self._holders[parameter] = module
                    self._once.watched.update(self.around[module])
                self._holders.setdefault(parameter, module)

    def gradients(self, loss_B: Tensor, calls: list[Call], outputs: Sequence[Output]) -> Parts:
        """Per-record gradients of the parameters that the losses depend on, merged. `calls` is emptied on the way, so
        that what a rule has read can go.

        Raises UnsupportedModuleError where they cannot be had exactly.
        """
        parameters = list(self.parameters.values())
        if len(loss_B) > 1 and not self._has_looked:
            self._look(loss_B, calls)
        needs_more = len(loss_B) > 1 and not self._needs_one_pass(calls, len(loss_B))
        inputs: list[Any] = [
            *(call.output_edge for call in calls),
            *parameters,
            *(output.edge for output in outputs if needs_more),
        ]
        found = differentiate([loss_B], inputs, [torch.ones_like(loss_B)], retain_graph=needs_more)
        of_calls, of_parameters, of_outputs = _cut(found, len(calls), len(parameters))
        used = [(call, g) for call, g in zip(calls, of_calls, strict=True) if g is not None]
        totals = {parameter: g for parameter, g in zip(parameters, of_parameters, strict=True) if g is not None}
        around = [(output, g) for output, g in zip(outputs, of_outputs, strict=False) if g is not None]
        del found, of_calls, of_parameters, of_outputs, inputs
        self._refuse_changed_inputs(call for call, _ in used)
        if len(loss_B) == 1:
            return self._of_one_record(used, totals)
        if totals and not needs_more:
            names = [name for name, parameter in self.parameters.items() if parameter in totals]
            raise UnsupportedModuleError(
                dict.fromkeys(names, "used outside its layer in some batches and not in others")
            )
        if needs_more and any(self._known_rows(call, len(loss_B)) is None and g.any() for call, g in used):
            self._look(loss_B, calls)
        calls.clear()
        return self._of_records(loss_B, used, totals, around)

    @property
    def watched(self) -> set[nn.Module]:
        """Whose outputs must be on the tape, beside the calls of layers with rules."""
        return self._once.watched

    def ways(self) -> dict[str, str]:
        """What no exact rule covers, by name: "losses", "torch.func", or the class of the module where it begins."""
        named = {id(parameter): name for name, parameter in self.parameters.items()}
        words = {LOSSES: LOSSES, RECOMPUTED: "torch.func"}
        return {
            named.get(id(place)) or self.names[place[0]]: words[way] if way in words else type(way[0]).__name__
            for place, way in self._once.ways.items()
        }

    # Every record has rows of its own, or every row is its own.

    def _of_one_record(self, used: Used, totals: Mapping[nn.Parameter, Tensor]) -> Parts:
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
        used: list[tuple[Call, Tensor]],
        totals: Mapping[nn.Parameter, Tensor],
        around: Around,
    ) -> Parts:
        size = len(loss_B)
        parts: Parts = {}
        with_rows: list[tuple[Call, Tensor]] = []
        shared: list[tuple[Call, Tensor]] = []
        for call, g in used:
            is_shared = _exact(self.rules[call.module]) and not self._rows_are_of_records(call, g, loss_B)
            (shared if is_shared else with_rows).append((call, g))
        once = self._once_per_record(loss_B, shared, used, totals, around) if shared or totals else {}
        used.clear()
        while with_rows:  # from the last: what a rule has read is dropped unless the gradient is made of it
            call, g = with_rows.pop()
            for name, rule in _exact(self.rules[call.module]).items():
                parts.setdefault(getattr(call.module, name), []).append(self._apply(rule, call, g, size))
            del call, g
        for parameter, of_parameter in once.items():
            parts.setdefault(parameter, []).extend(of_parameter)
        return _merged(parts)

    def _once_per_record(
        self,
        loss_B: Tensor,
        shared: Used,
        used: Used,
        totals: Mapping[nn.Parameter, Tensor],
        around: Around,
    ) -> Parts:
        """Of outputs that all records share, and of parameters that the losses reach past the layers."""
        parts: Parts = {}
        numbers: Counter[nn.Module] = Counter()
        items: list[Item] = []
        for call, g in shared:
            items.append(Item((call.module, numbers[call.module]), call.module, call.output_edge, g))
            numbers[call.module] += 1
        items += [Item(parameter, self._holders[parameter], parameter, total) for parameter, total in totals.items()]
        gradients = self._once.gradients(loss_B, items, used, around)
        for (call, _), gradient_Bs in zip(shared, gradients, strict=False):
            for name, rule in _exact(self.rules[call.module]).items():
                each = [self._apply(rule, call, g, 1) for g in gradient_Bs]
                parts.setdefault(getattr(call.module, name), []).append(clip.stacked(each))
        for parameter, gradient_Bs in zip(totals, gradients[len(shared) :], strict=True):
            parts.setdefault(parameter, []).append(clip.Instantiated(gradient_Bs.float()))
        return parts

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
        return not self._loose and all(self._known_rows(call, size) for call in calls)

    def _known_rows(self, call: Call, size: int) -> bool | None:
        """Whether its rows belong to records; None where nothing is known yet."""
        if not _may_have_rows(call, size) or _place(call) in self._without_rows:
            return False
        return self._has_rows.get((_place(call), len(call.input) == size))

    def _rows_are_of_records(self, call: Call, g: Tensor, loss_B: Tensor) -> bool:
        """What nothing is known of yet counts where it could make no difference."""
        known = self._known_rows(call, len(loss_B))
        return known if known is not None else not g.any() or not (g.isfinite().any() or loss_B.isfinite().any())

    def _look(self, loss_B: Tensor, calls: Sequence[Call]) -> None:
        """Rows belong to a record where they are reached by its loss alone; parameters are loose where they are reached
        past the layers.

        The losses are weighted by powers of two, once for each binary digit of a record's number, so that any two
        records get different weights once; a row that only its own record reaches follows its record's weight exactly.
        """
        size = len(loss_B)
        targets = [*(call.output_edge for call in calls), *self.parameters.values()]
        reached = _row_norms(loss_B, torch.ones_like(loss_B), targets)
        of_calls, of_parameters = _cut(reached, len(calls))
        used = [(call, norm_n) for call, norm_n in zip(calls, of_calls, strict=True) if norm_n is not None]
        self._loose.update(
            parameter
            for parameter, norm_n in zip(self.parameters.values(), of_parameters, strict=True)
            if norm_n is not None
        )
        # One that has none in this batch may look as if it had in another.
        self._without_rows.update(_place(call) for call, _ in used if not _may_have_rows(call, size))
        unknown = [(call, norm_n) for call, norm_n in used if self._known_rows(call, size) is None and _tells(norm_n)]
        follows = [True] * len(unknown)
        for digit in range(math.ceil(math.log2(size)) if unknown else 0):
            weight_B = torch.tensor([2.0 if i >> digit & 1 else 1.0 for i in range(size)]).to(loss_B)
            weighted = _row_norms(loss_B, weight_B, [call.output_edge for call, _ in unknown])
            for number, ((_, norm_n), norm) in enumerate(zip(unknown, weighted, strict=True)):
                expected = norm_n * weight_B.float().repeat_interleave(len(norm_n) // size)
                scale = float(norm_n.nan_to_num(0.0, 0.0, 0.0).max())
                assert norm is not None
                follows[number] &= torch.allclose(norm, expected, rtol=1e-4, atol=1e-6 * scale, equal_nan=True)
        for (call, _), follow in zip(unknown, follows, strict=True):
            key = _place(call), len(call.input) == size  # one row per record says nothing about the order of several
            self._has_rows[key] = self._has_rows.get(key, True) and follow
        self._has_looked = True

    # Refusals

    def _refuse_changed_inputs(self, calls: Iterable[Call]) -> None:
        changed = {
            self.names[call.module]: "its input is changed in place after its use: change a copy"
            for call in calls
            if any(map(clip.reads_input, _exact(self.rules[call.module]).values())) and call.is_changed
        }
        if changed:
            raise UnsupportedModuleError(changed)


def _place(call: Call) -> Any:
    return call.module, call.input.ndim, call.is_copy


def _may_have_rows(call: Call, size: int) -> bool:
    return clip.has_rows(call.module, call.input) and len(call.input) % size == 0 and len(call.input) > 0


def _row_norms(loss_B: Tensor, weight_B: Tensor, targets: Sequence[Any]) -> list[Tensor | None]:
    """Of the gradients of the weighted losses, [n] each: those themselves would be much to keep."""
    gradients = differentiate([loss_B], targets, [weight_B])
    return [None if g is None else norms(g[None] if g.ndim == 0 else g) for g in gradients]


def _tells(norm_n: Tensor) -> bool:
    """Whether some row says where it comes from: a record that is not finite says so of all rows that it reaches."""
    return bool((norm_n.isfinite() & (norm_n > 0)).any())


def _merged(parts: Parts) -> Parts:
    return {parameter: clip.merge(clip.of_one_form(parts.pop(parameter), parameter.shape)) for parameter in list(parts)}


def _cut(values: Sequence[Any], *lengths: int) -> list[Sequence[Any]]:
    """Pieces of these lengths, and the rest."""
    pieces = []
    for length in lengths:
        pieces.append(values[:length])
        values = values[length:]
    return [*pieces, values]
