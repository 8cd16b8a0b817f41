"""DP-SGD gradients from one backward pass, attached to a model by hooks.

Guarantee: `release` leaves in `.grad` the value of (sum of clipped per-record gradients + N(0, (sigma C)^2))
/ expected batch size, the Poisson-subsampled Gaussian mechanism that the ledger accounts for; whatever an
optimizer does with it is post-processing. Each step of the mechanism stands in one place:
`PoissonSampler.indices` samples, `PrivacyEngine.backward` clips, `privlm.privacy.release` accounts and adds
noise.

How it works: while a layer with an exact rule runs, its parameters do not require gradients, so that autograd
never forms a weight gradient; hooks keep its input and the edge of its output in the graph. `backward` asks
autograd for the gradients at those edges; norms, clip factors and the weighted sum follow from the inputs and
these gradients. What has no such rule is differentiated once per record: `privlm.privacy.per_record`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils import _pytree as pytree

from privlm.errors import UsageError
from privlm.privacy import clipping as clip
from privlm.privacy.inspection import (
    UnsupportedModuleError,
    exact_rules,
    find_rules,
    layer_names,
    mixing_modes,
    modules_around,
    number_layers,
    trainable_parameters,
)
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.neighbours import Losses, NeighbourCheck, RandomState, Seen, Subset, row_norms
from privlm.privacy.noise import Noise
from privlm.privacy.per_record import PerRecord
from privlm.privacy.release import World, release
from privlm.privacy.shared_rows import share
from privlm.privacy.tape import Call, Output, version
from privlm.privacy.watch import ReleaseCheck

_ATTACHED: WeakSet[nn.Module] = WeakSet()
_Gradients = dict[nn.Parameter, list[clip.PerRecordGradient]]


@dataclass(frozen=True)
class ClippingStatistics:
    """Diagnostics of one micro-batch. They are private data: no epsilon covers them."""

    norms: Tensor  # [B], before clipping
    num_clipped: int
    num_nonfinite: int


class PrivacyEngine:
    """Clips, sums and noises the gradients of the trainable parameters of `model`.

        engine = PrivacyEngine(model, clipping_norm=1.0)
        for batch in micro_batches:                             # none at all is fine
            engine.backward(losses, batch)                      # losses(model, batch) -> [B]
        engine.release(noise, ...)                              # once per logical step
        optimizer.step()

    The model keeps its class and its methods; outside `backward` it behaves as if nothing was attached,
    except that an ordinary backward into its parameters is an error.
    """

    def __init__(self, model: nn.Module, *, clipping_norm: float, clipping: str = "flat") -> None:
        """Raises UnsupportedModuleError, and UsageError for a bad setting or a model that cannot be attached."""
        if not 0 < clipping_norm < math.inf:
            raise UsageError(f"privacy.clipping_norm is {clipping_norm}: it must be a positive number")
        if clipping not in clip.STYLES:
            raise UsageError(f"privacy.clipping is {clipping!r}: choose one of {', '.join(clip.STYLES)}")
        if any(module in _ATTACHED for module in model.modules()):
            raise UsageError("a privacy engine is attached to this model already: call its detach() first")
        self.model = model
        self.clipping_norm = clipping_norm
        self._clip_factors = clip.STYLES[clipping]
        self._parameters = trainable_parameters(model)
        if not self._parameters:
            raise UsageError("the model has no trainable parameters")
        self._rules, problems = find_rules(model)
        if problems := problems | mixing_modes(model):
            raise UnsupportedModuleError(problems)

        self._sums: dict[nn.Parameter, Tensor] = {}  # of clipped gradients, float32, since the last release
        self._calls: list[Call] = []
        self._outputs: list[Output] = []
        self._is_recording = False
        self._is_taping = False
        self._has_run = False
        self._batch_size: int | None = None  # of the forward pass under way
        self._num_records = 0  # in the sums
        self._check = ReleaseCheck(clipping_norm)

        self._names = {module: name for name, module in model.named_modules()}
        self._layer_of = number_layers(self._parameters)
        self._exact = {module: exact_rules(rules) for module, rules in self._rules.items()}
        self._per_record = PerRecord(self._rules, self._names, self._parameters, modules_around(model))
        self._neighbours = NeighbourCheck(model, list(layer_names(self._parameters)), clipping_norm)
        self._handles: list[Any] = [model.register_forward_pre_hook(self._see_batch, with_kwargs=True)]
        self._hook_ids: dict[nn.Module, tuple[int, int]] = {}
        self._stand_innermost()
        for parameter in self._parameters.values():
            self._handles.append(parameter.register_post_accumulate_grad_hook(_refuse_raw_gradient))
        _ATTACHED.update(model.modules())

    def detach(self) -> None:
        """Removes every trace of the engine from the model."""
        for handle in self._handles:
            handle.remove()
        for module in self.model.modules():
            _ATTACHED.discard(module)

    def backward(self, losses: Losses, batch: Any, *, subset: Subset | None = None) -> ClippingStatistics:
        """One forward and one backward pass; adds the clipped gradients of the records to the running sum.

        Args:
            losses: losses(model, batch) -> one loss per record, [B]; row i must depend on record i alone. The
                neighbour check (privlm.privacy.neighbours) looks whether it does, by calls of its own with records
                of the batch replaced and left out. An autocast is best put around `backward`.
            batch: what `losses` reads: tensors with a row per record, or mappings and tuples of them.
            subset: subset(positions) -> the batch of these records as the data would pad them; by default their rows
                without the columns that the attention mask has for none.

        A record whose gradient is not finite (or whose squared norm overflows float32) contributes nothing.

        Raises UnsupportedModuleError for what cannot be clipped exactly, records that depend on each other included:
        the running sum is then gone. UsageError where a trainable parameter was added, removed or replaced since the
        engine was attached; ValueError for losses of another shape.
        """
        start = RandomState(self.model) if self._neighbours.is_due else None
        with self._recording():
            loss_B = self._losses(losses, batch)
            seen, gradients = self._differentiate(loss_B)
            statistics = self._accumulate(seen, gradients)
        del gradients, loss_B
        self._neighbours.count()
        if start is not None and len(seen.loss_B) > 1:
            self._look(losses, batch, subset, start, seen)
        return statistics

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Around a forward pass and what is made of it."""
        self._refuse_changed_parameters()
        if problems := mixing_modes(self.model):
            raise UnsupportedModuleError(problems)
        self._stand_innermost()
        self._is_recording = self._is_taping = True
        try:
            yield
        finally:
            self._is_recording = self._is_taping = False
            self._has_run = False
            self._calls, self._outputs = [], []
            self._batch_size = None
            self._require_gradients()

    def _losses(self, losses: Losses, batch: Any) -> Tensor:
        loss_B = losses(self.model, batch)
        self._is_taping = False
        if loss_B.ndim != 1:
            raise ValueError(f"expected one loss per record, shape [B], got shape {list(loss_B.shape)}")
        if not self._has_run:
            raise ValueError("no trained layer ran for these losses: call the attached model inside them")
        return loss_B

    def _differentiate(self, loss_B: Tensor, weight_B: Tensor | None = None) -> tuple[Seen, _Gradients]:
        """Norms [L, B] of what each layer contributes to the records' gradients, and these; of weighted losses."""
        with torch.autocast(loss_B.device.type, enabled=False):
            if not self._neighbours.has_looked:
                self._refuse_dependent_modules()
            entering = self._entering(len(loss_B))
            gradients = self._per_record_gradients(loss_B if weight_B is None else loss_B * weight_B)
            return Seen(loss_B.detach(), self._layer_norms(gradients, loss_B), entering), gradients

    def _entering(self, size: int) -> list[tuple[str, Tensor | None]]:
        """For the neighbour check alone, which names places by it."""
        if not self._neighbours.is_due:
            return []
        return [(self._names[call.module], row_norms(call.input, size)) for call in self._calls]

    def _accumulate(self, seen: Seen, gradients: _Gradients) -> ClippingStatistics:
        norm_LB = seen.norm_LB
        assert norm_LB is not None
        norm_B = torch.linalg.vector_norm(norm_LB, dim=0)
        nonfinite_B = ~norm_B.isfinite()
        factor_LB = self._clip_factors(norm_LB, self.clipping_norm).masked_fill(nonfinite_B, 0.0)
        num_nonfinite = int(nonfinite_B.sum())
        with torch.autocast(norm_B.device.type, enabled=False):
            for parameter, parts in gradients.items():
                kept = clip.without_records(parts, nonfinite_B) if num_nonfinite else parts
                clip.accumulate(kept, self._sum_of(parameter), factor_LB[self._layer_of[parameter]])
        self._num_records += len(norm_B)
        return ClippingStatistics(
            norms=norm_B,
            num_clipped=int((~nonfinite_B & (factor_LB < 1).any(0)).sum()),
            num_nonfinite=num_nonfinite,
        )

    @property
    def is_look_due(self) -> bool:
        """Whether the neighbour check waits for a batch of two or more records."""
        return self._neighbours.is_due

    def look(self, losses: Losses, batch: Any, *, subset: Subset | None = None) -> None:
        """The neighbour check alone, on two or more records; for those whose micro-batches hold one. See `backward`."""
        self._look(losses, batch, subset, RandomState(self.model), None)

    def _look(self, losses: Losses, batch: Any, subset: Subset | None, start: RandomState, seen: Seen | None) -> None:
        def run(batch: Any, weight_B: Tensor | None = None, gradients: bool = True) -> Seen:
            with self._recording():
                loss_B = self._losses(losses, batch)
                return (
                    self._differentiate(loss_B, weight_B)[0]
                    if gradients
                    else Seen(loss_B.detach(), None, self._entering(len(loss_B)))
                )

        device_type = next(iter(self._parameters.values())).device.type
        end = RandomState(self.model)
        start.restore()
        try:
            is_mixed = torch.is_autocast_enabled(device_type)
            with torch.autocast(device_type, enabled=False):
                self._neighbours.look(run, losses, batch, None if is_mixed else seen, subset)
        except BaseException:
            self._sums, self._num_records = {}, 0
            raise
        finally:
            end.restore()

    def release(
        self,
        noise: Noise,
        *,
        step: int,
        sampling_rate: float,
        noise_multiplier: float,
        expected_batch_size: float,
        world: World | None,
        ledger: Ledger | None,
    ) -> None:
        """Ends a logical step: what privlm.privacy.release makes of the clipped sums is written to `.grad`.

        Call it for every step, with or without a `backward` before it, and on every rank.

        Args:
            step: must grow from call to call, so that noise is never used twice.
            expected_batch_size: sampling rate times number of records, never the size that was drawn.
            world: None in a run of one process.
            ledger: None on ranks other than 0.

        Raises ValueError, UsageError and MechanismError as that function does.
        """
        released = release(
            [self._sum_of(parameter) for parameter in self._parameters.values()],
            noise,
            step=step,
            setting=Setting(sampling_rate, noise_multiplier, self.clipping_norm, expected_batch_size, unit="record"),
            num_units=self._num_records,
            check=self._check,
            world=world,
            ledger=ledger,
        )
        for parameter, gradient in zip(self._parameters.values(), released, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        self._sums = {}
        self._num_records = 0

    def ways(self) -> dict[str, str]:
        """What is differentiated once per record, for want of an exact rule, and where that begins."""
        return self._per_record.ways()

    def _require_gradients(self) -> None:
        """For layers that were left by an exception, as failures and the recomputation of checkpoints do."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)

    def _sum_of(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self._sums[parameter]

    def _per_record_gradients(self, loss_B: Tensor) -> _Gradients:
        gradients = self._per_record.gradients(loss_B, self._calls, self._outputs)
        self._is_recording = False  # no layer runs for the model any more
        self._calls, self._outputs = [], []
        return gradients

    def _layer_norms(self, gradients: _Gradients, loss_B: Tensor) -> Tensor:
        """Norms [L, B] of what each layer contributes to the records' gradients."""
        num_layers = 1 + max(self._layer_of.values())
        squared_LB = torch.zeros(num_layers, len(loss_B), device=loss_B.device)
        for parameter, parts in gradients.items():
            squared_LB[self._layer_of[parameter]] += clip.squared_norms(parts)
        return squared_LB.clamp(min=0).sqrt()

    # Hooks. Under activation checkpointing layers run again inside `backward`: the same way, but off the tape.

    def _see_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_taping:
            self._has_run = True
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim]
            self._batch_size = len(tensors[0]) if tensors else None

    def _stand_innermost(self) -> None:
        """Nothing may stand between our hooks and the forward function, whoever registered his first."""
        for module in {*self._rules, *self._per_record.watched}:
            if module not in self._hook_ids:
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after, with_kwargs=True, prepend=True)
                self._handles += [before, after]
                self._hook_ids[module] = before.id, after.id
            else:
                before_id, after_id = self._hook_ids[module]
                pre_hooks: Any = module._forward_pre_hooks  # ordered
                hooks: Any = module._forward_hooks
                pre_hooks.move_to_end(before_id)
                hooks.move_to_end(after_id, last=False)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_recording:
            return
        self._has_run = self._has_run or self._is_taping
        exact = self._exact.get(module, {})
        before_id, after_id = self._hook_ids[module]
        if next(reversed(module._forward_pre_hooks)) != before_id or next(iter(module._forward_hooks)) != after_id:
            raise UnsupportedModuleError({self._names[module]: "a hook was registered during the forward pass"})
        if exact and "forward" in vars(module):
            raise UnsupportedModuleError(
                {self._names[module]: "its forward function was replaced: attach the engine last"}
            )
        if _only_input(args, kwargs) is not None:
            for name in exact:
                getattr(module, name).requires_grad_(False)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._is_recording:
            return None
        exact = self._exact.get(module, {})
        for name in exact:
            getattr(module, name).requires_grad_(True)
        x = _only_input(args, kwargs)
        if not torch.is_grad_enabled():
            return None
        if exact and x is not None and not output.requires_grad:  # a first layer: nothing before it is trained
            output.requires_grad_(True)
        output = pytree.tree_map_only(Tensor, partial(self._with_edge, module), output)
        if x is not None and module in self._rules and isinstance(output, Tensor) and output.requires_grad:
            call = Call(module, x.detach(), get_gradient_edge(output), version(x))
            if exact and isinstance(module, nn.Embedding) and self._is_shared(x):
                copied = partial(self._copied, call, output.detach(), output._version)
                return share(output, copied, escapes=partial(self._tape_once, call))
            self._tape(call)
        return output

    def _tape(self, call: Call) -> None:
        if self._is_taping:
            self._calls.append(call)

    def _tape_once(self, call: Call) -> None:
        if not any(call is taped for taped in self._calls):
            self._tape(call)

    def _with_edge(self, module: nn.Module, output: Tensor) -> Tensor:
        """The same memory under a node of its own.

        Models may change an output in place; on a leaf that is an error, and on a view (what Linear returns for 3D
        inputs) it would cut the recorded edge out of the graph.
        """
        if not output.requires_grad:
            return output
        output = torch.ops.aten._unsafe_view(output, output.shape)
        if self._is_taping and module in self._per_record.watched:
            self._outputs.append(Output(module, get_gradient_edge(output)))
        return output

    def _is_shared(self, ids: Tensor) -> bool:
        """Whether a table is asked once for all records."""
        if ids.ndim == 0 or self._batch_size == 1:
            return False
        return len(ids) == 1 or (ids.ndim == 1 and self._batch_size not in (None, len(ids)))

    def _copied(self, shared: Call, rows: Tensor, version_of_rows: int, num_records: int, is_row: bool) -> Tensor:
        """`rows`, which the call gave, once for each record, as the output of a call of its own.

        is_row: their first dimension is the one row of all records.
        """
        if rows._version != version_of_rows:
            raise UnsupportedModuleError(
                {self._names[shared.module]: "what all records share is changed in place: change a copy"}
            )
        ids, rows = (shared.input, rows) if is_row else (shared.input[None], rows[None])
        copies = rows.expand(num_records, *rows.shape[1:]).detach()
        if not torch.is_grad_enabled():
            return copies
        copies = torch.ops.aten._unsafe_view(copies.requires_grad_(True), copies.shape)
        ids = ids.expand(num_records, *ids.shape[1:])
        self._tape(Call(shared.module, ids, get_gradient_edge(copies), shared.version, is_copy=True))
        return copies

    # Refusals

    def _refuse_changed_parameters(self) -> None:
        now = trainable_parameters(self.model)
        changed = [name for name in self._parameters | now if self._parameters.get(name) is not now.get(name)]
        if changed:
            raise UsageError(
                f"trainable parameters changed after the privacy engine was attached: {', '.join(changed)}. "
                "Attach the engine when the model is complete"
            )

    def _refuse_dependent_modules(self) -> None:
        problems = {
            self._names[call.module]: "its output for a record depends on other records"
            for call in self._calls
            if call.input.ndim > 0
            and len(call.input) > 1
            and any(map(clip.is_general, self._rules[call.module].values()))
            and clip.depends_on_others(call.module, call.input)
        }
        if problems:
            raise UnsupportedModuleError(problems)


def _only_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Of a layer; None where it is called with more than one tensor."""
    values = [*args, *kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None


def _refuse_raw_gradient(parameter: Tensor) -> None:
    parameter.grad = None
    raise UsageError(
        "an ordinary backward() reached a model with a privacy engine attached; its gradient is neither clipped "
        "nor noised. Use engine.backward(), torch.autograd.grad for a term that reads no "
        "private record, or engine.detach()"
    )
