"""The neighbour check: whether the loss of a record depends on that record alone.

Clipping one by one bounds what a record adds to the sum only where no other record's loss and gradient know of it. The
check believes no one and looks at what happens. Shapes: B records of a micro-batch, L layers.

Replace: some records become copies of others, everything random is drawn again as before. The losses of all other
records must stay what they were, and so must their gradients. The losses are weighted there by powers of two, one per
record: the gradient norms of a record in every layer must then scale by its own weight, or another record's loss has
reached its rows. This sees detached, frozen and integer paths as well as those that autograd follows.

Drop: records leave. The losses of the others must stay within rounding, with the padding cut as for a batch without
it: this sees a division by the number of records or tokens, and padding that counts.

The first look takes every record in turn (of more than eight, random halves of the batch), and is repeated until it has
seen finite losses and gradients that are not all zero. Later ones take one draw each at random steps, for less than
1 % of the time.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.privacy import keyed_random
from privlm.privacy.batch_rows import refuse_without_rows, take, take_padded
from privlm.privacy.inspection import UnsupportedModuleError

Losses = Callable[[nn.Module, Any], Tensor]
"""losses(model, batch) -> loss of each record, [B]."""

Subset = Callable[[Sequence[int]], Any]
"""The records at some positions of a batch, padded as the data would pad these alone."""

MIN_RECORDS = 2  # of a batch that shows anything
NUM_FIRST = 8  # replacements, and records that are dropped, of the first look
NUM_WITH_GRADIENTS = 2  # of the first look's replacements
LATER = 1 / 256  # share of the later micro-batches that are looked at; such a look costs about as much as two
MAX_EXPONENT = 3  # of the weights: no overflow in half precision

# Not bit for bit: kernels are chosen by whether any record of a batch is padded, and round differently.
LOSS_TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-4  # of a record's whole gradient, since single layers may have one that is rounding alone
DROP_TOLERANCE = 1e-4  # smaller batches are multiplied in another order

NO_REPEAT = "they differ from one evaluation to the next, from one seed and in evaluation mode, too"
ON_OTHERS = "the loss of one record depends on other records of the batch"


@dataclass(frozen=True)
class Seen:
    """What one pass over a batch showed.

    loss_B: detached. norm_LB: of the gradients; None where none were taken. entering: of each layer in the order of its
    calls, the norms [B] of the rows that enter it; None where its input has no row per record.
    """

    loss_B: Tensor
    norm_LB: Tensor | None
    entering: Sequence[tuple[str, Tensor | None]]


Run = Callable[..., Seen]
"""run(batch, weight_B=None, gradients=True) -> Seen: one recorded pass, losses multiplied by their weights."""


@dataclass
class NeighbourCheck:
    """Decides when to look, looks, and raises UnsupportedModuleError for records that depend on each other.

    model, layer_names: of the engine; clipping_norm: gradients far below it are not told from zero.
    """

    model: nn.Module
    layer_names: Sequence[str]
    clipping_norm: float
    has_looked: bool = False
    is_due: bool = True
    num_batches: int = 0
    num_looks: int = 0
    _as_trained: bool = True  # whether replays in train mode repeat themselves
    _drop_mode: str = ""  # of MODES

    def count(self) -> None:
        """A micro-batch has come: now and then one is looked at."""
        self.num_batches += 1
        draw = keyed_random.generator("neighbours", self.num_batches).random()
        self.is_due = self.is_due or not self.has_looked or draw < LATER

    def look(self, run: Run, losses: Losses, batch: Any, base: Seen | None, subset: Subset | None) -> None:
        """Looks at `batch`, of two or more records; everything random must stand as before `base`, its own pass.

        base: None where there is none in this precision, or none yet; that of one record is not looked at then.
        """
        is_first = not self.has_looked
        start = RandomState(self.model)
        buffers = _versions(self.model)
        base = base or run(batch)
        size = len(base.loss_B)
        if size < MIN_RECORDS:
            return
        refuse_without_rows(batch, size)
        self.num_looks += 1
        generator = keyed_random.generator("neighbours, records", self.num_looks)
        if is_first:
            self._as_trained = self._repeats(run, start, batch, base)
        with contextlib.nullcontext() if self._as_trained else evaluation(self.model):
            if not self._as_trained:
                start.restore()
                base = run(batch)
                if is_first and not self._repeats(run, start, batch, base):
                    raise UnsupportedModuleError({"losses": NO_REPEAT})
            is_conclusive = self._replace(run, start, batch, base, generator, is_first)
        self._drop(losses, batch, subset, size, generator, is_first)
        _refuse_changed_buffers(self.model, buffers)
        self.has_looked = self.has_looked or is_conclusive
        self.is_due = not self.has_looked

    def _repeats(self, run: Run, start: RandomState, batch: Any, base: Seen) -> bool:
        """Whether the same batch gives the same losses again; then a row must be reached by its own loss alone."""
        start.restore()
        weight_B = _weights(len(base.loss_B), keyed_random.generator("neighbours, weights"), base)
        again = run(batch, weight_B=weight_B)
        if not _equal(again.loss_B, base.loss_B, LOSS_TOLERANCE):
            return False
        self._compare(base, again, weight_B, torch.ones_like(base.loss_B, dtype=torch.bool))
        return True

    def _replace(
        self, run: Run, start: RandomState, batch: Any, base: Seen, generator: np.random.Generator, is_first: bool
    ) -> bool:
        """Whether the look has seen anything: finite losses and gradients, and a replacement that made a difference."""
        size = len(base.loss_B)
        made_a_difference = False
        for number, positions in enumerate(_replacements(size, generator, NUM_FIRST if is_first else 1)):
            start.restore()
            weight_B = _weights(size, generator, base)
            replaced = take(batch, positions, size)
            other = run(replaced, weight_B=weight_B, gradients=number < NUM_WITH_GRADIENTS)
            kept_B = torch.tensor([position == i for i, position in enumerate(positions)], device=weight_B.device)
            self._compare(base, other, weight_B, kept_B)
            made_a_difference |= not torch.equal(other.loss_B[~kept_B], base.loss_B[~kept_B])
        assert base.norm_LB is not None
        is_finite = bool(base.loss_B.isfinite().all() and base.norm_LB.isfinite().all())
        return is_finite and made_a_difference and bool(base.norm_LB.any())

    def _compare(self, base: Seen, other: Seen, weight_B: Tensor, kept_B: Tensor) -> None:
        if not _equal(other.loss_B[kept_B], base.loss_B[kept_B], LOSS_TOLERANCE):
            raise UnsupportedModuleError(_place(base, other, kept_B))
        if other.norm_LB is None or base.norm_LB is None:
            return
        expected_LB = base.norm_LB * weight_B
        norm_B = torch.linalg.vector_norm(expected_LB, dim=0)
        bound_B = NORM_TOLERANCE * (norm_B + 1e-3 * self.clipping_norm)
        differs_LB = ~((other.norm_LB - expected_LB).abs() <= bound_B)
        differs_L = differs_LB[:, kept_B & norm_B.isfinite()].any(1)
        if differs_L.any():
            layers = [name for name, differs in zip(self.layer_names, differs_L.tolist(), strict=True) if differs]
            raise UnsupportedModuleError(
                dict.fromkeys(layers, "the loss of one record depends on the rows of others here")
            )

    def _drop(
        self,
        losses: Losses,
        batch: Any,
        subset: Subset | None,
        size: int,
        generator: np.random.Generator,
        is_first: bool,
    ) -> None:
        """All but a few records leave, then of these one after the other (one alone in later looks)."""
        few = sorted(generator.permutation(size)[:NUM_FIRST].tolist())
        rows = subset or partial(take_padded, batch, size=size)

        def losses_of(positions: list[int], seed: int = 0) -> Tensor:
            torch.manual_seed(seed)
            loss_B = losses(self.model, rows(positions) if len(positions) < size else batch)
            if loss_B.shape != (len(positions),):
                raise UsageError(
                    f"the losses of {len(positions)} of the batch's records have the shape {list(loss_B.shape)}, not "
                    f"[{len(positions)}]: a batch may be of any size, of one record as well"
                )
            return loss_B

        with torch.no_grad(), torch.autocast(_device(self.model).type, enabled=False):
            if is_first:
                self._drop_mode = self._mode_without_chance(partial(losses_of, few))
            with MODES[self._drop_mode](self.model):
                few_B = losses_of(few)
                pairs = [(few_B, losses_of(list(range(size)))[few])]
                for i in range(len(few)) if is_first else generator.permutation(len(few))[:1].tolist():
                    without_i = few[:i] + few[i + 1 :]
                    if without_i:
                        pairs.append((losses_of(without_i), torch.cat([few_B[:i], few_B[i + 1 :]])))
        if not all(_equal(now_B, before_B, DROP_TOLERANCE) for now_B, before_B in pairs):
            raise UnsupportedModuleError(
                {"losses": f"{ON_OTHERS}: they change when records leave (a mean over the batch, its padding?)"}
            )

    def _mode_without_chance(self, losses_of: Callable[[int], Tensor]) -> str:
        for name, mode in MODES.items():
            with mode(self.model):
                if _equal(losses_of(1), losses_of(2), LOSS_TOLERANCE):
                    return name
        raise UnsupportedModuleError(
            {"losses": "they draw random numbers even in evaluation mode: draw those of a record from its own key"}
        )


class RandomState:
    """The global generators as they stand: torch's (of CPU and of the model's device), numpy's and Python's."""

    def __init__(self, model: nn.Module) -> None:
        self._device = _device(model)
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        self._numpy, self._python = np.random.get_state(), random.getstate()

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        np.random.set_state(self._numpy)
        random.setstate(self._python)


def row_norms(x: Tensor, size: int | None) -> Tensor | None:
    """[B] of an input with a row per record, else None."""
    if x.ndim == 0 or len(x) != size:
        return None
    return torch.linalg.vector_norm(x.detach().reshape(len(x), -1).float(), dim=1)


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then every module's own."""
    with _modes_kept(model):
        model.eval()
        yield


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    with _modes_kept(model):
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.training = False
        yield


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


MODES: dict[str, Callable[[nn.Module], contextlib.AbstractContextManager[None]]] = {
    "train": _without_dropout,
    "evaluation": evaluation,
}
"""In which records are dropped: what happens in training, where that is a matter of no chance but dropout."""


def _replacements(size: int, generator: np.random.Generator, number: int) -> Iterator[list[int]]:
    """Positions of batches in which some records have become copies of others: single ones, or about half of many."""
    everyone = np.arange(size)
    singles = generator.permutation(size)
    for turn in range(min(number, size)):
        replaced = everyone == singles[turn] if size <= NUM_FIRST else generator.permutation(size) < size // 2
        positions = everyone.copy()
        # Copies of records that stay, so that sums and means over the batch change.
        positions[replaced] = generator.choice(everyone[~replaced], int(replaced.sum()))
        yield positions.tolist()


def _weights(size: int, generator: np.random.Generator, base: Seen) -> Tensor:
    """Powers of two, [B], as different as may be."""
    exponents = generator.permutation(size) % (2 * MAX_EXPONENT + 1) - MAX_EXPONENT
    return torch.from_numpy(2.0**exponents).to(base.loss_B)


def _equal(now_B: Tensor, before_B: Tensor, tolerance: float) -> bool:
    scale = before_B[before_B.isfinite()].abs().max().item() if before_B.isfinite().any() else 0.0
    tolerance = max(tolerance, 8 * torch.finfo(before_B.dtype).eps)
    return torch.allclose(now_B, before_B, rtol=tolerance, atol=0.1 * tolerance * scale, equal_nan=True)


def _place(base: Seen, other: Seen, kept_B: Tensor) -> dict[str, str]:
    """Where the dependence is seen first."""
    for (name, before_B), (_, now_B) in zip(base.entering, other.entering, strict=False):
        if before_B is not None and now_B is not None and not _equal(now_B[kept_B], before_B[kept_B], LOSS_TOLERANCE):
            return {name: f"{ON_OTHERS}, which shows first in what enters here"}
    return {"losses": f"{ON_OTHERS}, which shows in no layer's input, so behind the last of them"}


def _versions(model: nn.Module) -> dict[str, tuple[int, int]]:
    saved = model.state_dict(keep_vars=True)
    return {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers() if name in saved}


def _refuse_changed_buffers(model: nn.Module, before: Mapping[str, tuple[int, int]]) -> None:
    changed = [name for name, version in _versions(model).items() if before.get(name) != version]
    if changed:
        raise UnsupportedModuleError(
            dict.fromkeys(changed, "the forward pass changes this buffer, which would carry data past the noise")
        )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
