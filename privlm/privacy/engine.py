"""DP-SGD gradients from one backward pass, attached to a model by hooks.

Guarantee: `release` leaves in `.grad` the value of (sum of clipped per-record gradients + N(0, (sigma C)^2))
/ expected batch size, the Poisson-subsampled Gaussian mechanism that the ledger accounts for; whatever an
optimizer does with it is post-processing. Each step of the mechanism stands in one place:
`PoissonSampler.indices` samples, `PrivacyEngine.backward` clips, `privlm.privacy.release` accounts and adds
noise.

How it works: hooks keep the input of a layer and the edge of its output in the graph (`privlm.privacy.recorder`).
`backward` asks autograd for the gradients at those edges; norms, clip factors and the weighted sum follow from
the inputs and these gradients. What has no exact rule is differentiated once per record
(`privlm.privacy.per_record`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.privacy import clipping as clip
from privlm.privacy.batch_rows import has_rows
from privlm.privacy.inspection import (
    UnsupportedModuleError,
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
from privlm.privacy.recorder import Recorder
from privlm.privacy.release import World, release
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
        self._num_records = 0  # in the sums
        self._check = ReleaseCheck(clipping_norm)

        self._names = {module: name for name, module in model.named_modules()}
        self._layer_of = number_layers(self._parameters)
        self._per_record = PerRecord(self._rules, self._names, self._parameters, modules_around(model))
        self._neighbours = NeighbourCheck(model, list(layer_names(self._parameters)), clipping_norm)
        self._recorder = Recorder(
            model, self._rules, self._names, list(self._parameters.values()), self._per_record.watched
        )
        self._handles = [
            parameter.register_post_accumulate_grad_hook(_refuse_raw_gradient)
            for parameter in self._parameters.values()
        ]
        _ATTACHED.update(model.modules())

    def detach(self) -> None:
        """Removes every trace of the engine from the model."""
        self._recorder.detach()
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
        if start is not None and not self._sums and not has_rows(batch, 1):
            # Before there are sums: they take as much memory as the model, the look as much as a step. It makes a pass
            # of its own then, which one of 256 micro-batches can bear.
            self._look(losses, batch, subset, start, None)
            start = None
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
        with self._recorder.recording():
            yield

    def _losses(self, losses: Losses, batch: Any) -> Tensor:
        loss_B = losses(self.model, batch)
        self._recorder.end_of_forward()
        if loss_B.ndim != 1:
            raise ValueError(f"expected one loss per record, shape [B], got shape {list(loss_B.shape)}")
        if not self._recorder.has_run:
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
        return [(self._names[call.module], row_norms(call.input, size)) for call in self._recorder.calls]

    def _accumulate(self, seen: Seen, gradients: _Gradients) -> ClippingStatistics:
        """Takes `gradients` apart."""
        norm_LB = seen.norm_LB
        assert norm_LB is not None
        norm_B = torch.linalg.vector_norm(norm_LB, dim=0)
        nonfinite_B = ~norm_B.isfinite()
        factor_LB = self._clip_factors(norm_LB, self.clipping_norm).masked_fill(nonfinite_B, 0.0)
        num_nonfinite = int(nonfinite_B.sum())
        with torch.autocast(norm_B.device.type, enabled=False):
            for parameter in list(gradients):
                parts = gradients.pop(parameter)  # the last use: its memory can become that of the next sum
                kept = clip.without_records(parts, nonfinite_B) if num_nonfinite else parts
                del parts
                self._add_to_sum(parameter, kept, factor_LB[self._layer_of[parameter]])
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
                if gradients:
                    return self._differentiate(loss_B, weight_B)[0]
                return Seen(loss_B.detach(), None, self._entering(len(loss_B)))

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

    def _sum_of(self, parameter: nn.Parameter) -> Tensor:
        if parameter not in self._sums:
            self._sums[parameter] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
        return self._sums[parameter]

    def _add_to_sum(self, parameter: nn.Parameter, gradient: list[clip.PerRecordGradient], weight_B: Tensor) -> None:
        total = self._sums.get(parameter)
        if is_first := total is None:
            total = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        clip.accumulate(gradient, total, weight_B, is_first=is_first)
        self._sums[parameter] = total

    def _per_record_gradients(self, loss_B: Tensor) -> _Gradients:
        gradients = self._per_record.gradients(loss_B, self._recorder.calls, self._recorder.outputs)
        self._recorder.end_of_backward()
        return gradients

    def _layer_norms(self, gradients: _Gradients, loss_B: Tensor) -> Tensor:
        """Norms [L, B] of what each layer contributes to the records' gradients."""
        num_layers = 1 + max(self._layer_of.values())
        squared_LB = torch.zeros(num_layers, len(loss_B), device=loss_B.device)
        grams = clip.Grams()
        for parameter, parts in gradients.items():
            squared_LB[self._layer_of[parameter]] += clip.squared_norms(parts, grams)
        return squared_LB.clamp(min=0).sqrt()

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
            for call in self._recorder.calls
            if call.input.ndim > 0
            and len(call.input) > 1
            and any(map(clip.is_general, self._rules[call.module].values()))
            and clip.depends_on_others(call.module, call.input)
        }
        if problems:
            raise UnsupportedModuleError(problems)


def _refuse_raw_gradient(parameter: Tensor) -> None:
    parameter.grad = None
    raise UsageError(
        "an ordinary backward() reached a model with a privacy engine attached; its gradient is neither clipped "
        "nor noised. Use engine.backward(), torch.autograd.grad for a term that reads no private record, or "
        "engine.detach()"
    )
