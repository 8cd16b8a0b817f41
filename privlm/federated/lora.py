"""What a server makes of low-rank factors, whose mean is not the mean of what they do.

A module's LoRA changes its weight by s B A, with A [rank, in], B [out, rank] and s = alpha / rank. The mean of clients'
changes, sum of p_k s_k B_k A_k with p_k = w_k / sum of w, is the exact aggregate here: `dense_mean`. Rules, by
federated.lora:

    separate    means of A and of B (FedIT, arXiv 2305.05644): exact with one client only, or where all A are equal
    ffa         A is fixed and equal for all, B alone travels (FFA-LoRA, arXiv 2403.12313): exact
    stack       factors side by side (FLoRA, arXiv 2409.05976): exact; the rank is the sum of ranks
    svd         the best factors of a given rank (FlexLoRA, arXiv 2402.11505): exact where the mean has that rank
    residual    means of A and of B, and what they miss of the mean for the base weights (FedEx-LoRA, arXiv
                2410.09432): exact
    zero_pad    separate, with factors of lower rank padded by zeros (HetLoRA, arXiv 2401.06432): not exact

All are computed from the factors in float64, and rounded to their dtype at the end; no dense matrix is formed but in
`dense` and in a Fold that has outgrown its factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from privlm.errors import UsageError
from privlm.federated.aggregate import NoUpdates, Tensors, UnusableReply

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight")


class Pair(NamedTuple):
    """The factors of one module, A [rank, in] and B [out, rank]."""

    A: Tensor
    B: Tensor

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that they change, [out, in]."""
        return len(self.B), self.A.shape[1]


Factors = dict[str, Pair]
"""Module -> its factors."""


@dataclass(frozen=True)
class LoraUpdate:
    """What one client has made of its factors.

    weight: p_k before it is divided by the sum over the clients.
    scales: module -> s_k = alpha / rank.
    """

    factors: Factors
    weight: float
    scales: Mapping[str, float]

    @classmethod
    def of(cls, tensors: Tensors, weight: float, scales: Mapping[str, float]) -> LoraUpdate:
        """From tensors by the names of peft. Raises as `pairs` does, and for a module without a scale."""
        factors = pairs(tensors)
        if missing := sorted(factors.keys() - scales.keys()):
            raise UnusableReply(f"{missing[0]} has factors, but no scale alpha / rank")
        return cls(factors, weight, scales)


def pairs(tensors: Tensors) -> Factors:
    """The factors among `tensors`, by the names of model.named_parameters() under peft; other tensors are left out.

    Raises UnusableReply where a factor lacks its mate or does not fit it, and for two adapters on one module,
    UsageError for parts of an adapter that are no factors of a linear layer.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            module = found.setdefault(match["module"], {})
            if match["factor"] in module:
                raise UnusableReply(f"{match['module']} has the factors of two adapters")
            module[match["factor"]] = tensor.detach()
        elif ".lora_" in name:
            raise UsageError(f"{name} is no factor of a linear layer: federated.lora has a rule for adapter=lora alone")
    return {module: _pair(module, factors) for module, factors in found.items()}


def _pair(module: str, factors: Mapping[str, Tensor]) -> Pair:
    if len(factors) < 2:
        raise UnusableReply(f"{module} comes with lora_{min(factors)} alone")
    A, B = factors["A"], factors["B"]
    if not (A.dim() == B.dim() == 2 and A.shape[0] == B.shape[1]):
        raise UnusableReply(f"{module}: lora_A {list(A.shape)} and lora_B {list(B.shape)} do not fit each other")
    return Pair(A, B)


def named(factors: Factors, adapter: str = "default") -> Tensors:
    """Back to the names of peft."""
    tensors: Tensors = {}
    for module, pair in factors.items():
        tensors[f"{module}.lora_A.{adapter}.weight"] = pair.A
        tensors[f"{module}.lora_B.{adapter}.weight"] = pair.B
    return tensors


def separate(updates: Sequence[LoraUpdate]) -> Factors:
    """Means of A and of B. Raises UsageError for mixed ranks."""
    _require_one_rank(updates, "separate")
    return {module: _rounded(_separate(updates, module), pair) for module, pair in updates[0].factors.items()}


def _separate(updates: Sequence[LoraUpdate], module: str) -> Pair:
    shares = _shares(updates)
    A = sum(p * update.factors[module].A.double() for p, update in zip(shares, updates, strict=True))
    B = sum(p * update.factors[module].B.double() for p, update in zip(shares, updates, strict=True))
    return Pair(A, B)  # type: ignore[arg-type]


def ffa(updates: Sequence[LoraUpdate]) -> Factors:
    """The mean of B; A as it is. Raises UnusableReply where a client has another A, UsageError for mixed ranks."""
    _require_one_rank(updates, "ffa")
    averaged = {}
    for module, pair in separate(updates).items():
        fixed = updates[0].factors[module].A
        if not all(torch.equal(update.factors[module].A, fixed) for update in updates):
            raise UnusableReply(f"{module}: lora_A differs between clients, which federated.lora=ffa keeps fixed")
        averaged[module] = Pair(fixed.clone(), pair.B)
    return averaged


def stack(updates: Sequence[LoraUpdate]) -> Factors:
    """Factors side by side, [A_1; A_2; ...] and [p_1 s_1 B_1, p_2 s_2 B_2, ...]: their product is the exact mean.

    Scale and weight are in B, once; ranks may differ.
    """
    return {module: _rounded(_stack(updates, module), pair) for module, pair in _alike(updates).items()}


def _stack(updates: Sequence[LoraUpdate], module: str) -> Pair:
    parts = [
        _scaled(update.factors[module], p * update.scales[module])
        for p, update in zip(_shares(updates), updates, strict=True)
    ]
    return _joined(parts)


def svd(updates: Sequence[LoraUpdate], rank: int, scales: Mapping[str, float]) -> Factors:
    """The factors of `rank` that come closest to the exact mean; scales: those that they will be used with."""
    return {
        module: _rounded(_truncated(_stack(updates, module), rank, scales[module], module), pair)
        for module, pair in _alike(updates).items()
    }


def truncate(factors: Factors, rank: int, scales: Mapping[str, float]) -> Factors:
    """The factors of `rank` whose scaled product comes closest to the product of `factors` (Eckart and Young).

    With `stack(updates)` every client gets a rank of its own. B takes the singular values, the rows of A are
    orthonormal: a direction that the mean lacks can still be learned, as in a fresh LoRA.

    Raises UsageError for a rank above that of a weight.
    """
    return {
        module: _rounded(_truncated(_double(pair), rank, scales[module], module), pair)
        for module, pair in factors.items()
    }


def _truncated(pair: Pair, rank: int, scale: float, module: str) -> Pair:
    if not 1 <= rank <= min(pair.shape):
        raise UsageError(f"adapter.rank={rank}: {module} has a weight of {list(pair.shape)}; choose a lower rank")
    missing = max(rank - pair.rank, 0)
    U, S, V = _svd(Pair(_grown(pair.A, missing, dim=0), _grown(pair.B, missing, dim=1)))
    return Pair(V[:rank], U[:, :rank] * S[:rank] / scale)


def residual(updates: Sequence[LoraUpdate], scales: Mapping[str, float]) -> tuple[Factors, Factors]:
    """Means of A and of B, and the factors of what their scaled product misses of the exact mean.

    Clients go on with the first; the second (no scale) belongs to the base weights of all. Its rank is the lowest that
    the dtype of the factors can tell, (K - 1) r at most where scales are equal: none with one client or with one A.

    scales: those that the means are used with. Raises UsageError for mixed ranks.
    """
    _require_one_rank(updates, "residual")
    means, rest = separate(updates), {}
    for module, mean in means.items():
        exact = _stack(updates, module)
        missed = _joined([exact, _scaled(mean, -scales[module])])  # of the rounded means, so that nothing is lost
        smallest = _svd(exact)[1].max() * torch.finfo(mean.A.dtype).eps
        U, S, V = _svd(missed)
        kept = smallest < S
        rest[module] = _rounded(Pair(V[kept], U[:, kept] * S[kept]), mean)
    return means, rest


def zero_pad(updates: Sequence[LoraUpdate], scales: Mapping[str, float]) -> Factors:
    """Means of A and of B at the highest rank, lower ones padded by zeros; B takes s_k / s for the scale of the result.

    Clients are weighted as everywhere, not by the norm of what they send.
    """
    averaged = {}
    for module, pair in _alike(updates).items():
        rank = max(update.factors[module].rank for update in updates)
        padded = [_padded(update, module, rank, scales[module]) for update in updates]
        averaged[module] = _rounded(_separate(padded, module), pair)
    return averaged


def _padded(update: LoraUpdate, module: str, rank: int, scale: float) -> LoraUpdate:
    pair = _scaled(update.factors[module], update.scales[module] / scale)
    missing = rank - pair.rank
    grown = Pair(_grown(pair.A, missing, dim=0), _grown(pair.B, missing, dim=1))
    return LoraUpdate({module: grown}, update.weight, {module: scale})


def cut(factors: Factors, rank: int) -> Factors:
    """The first `rank` directions: what a client of lower rank takes of `zero_pad`, with the scale of that."""
    return {module: Pair(pair.A[:rank].clone(), pair.B[:, :rank].clone()) for module, pair in factors.items()}


def dense_mean(updates: Sequence[LoraUpdate]) -> Tensors:
    """Module -> the exact mean of the changes, float64 [out, in]."""
    return {module: pair.B @ pair.A for module, pair in exact_mean(updates).items()}


def exact_mean(updates: Sequence[LoraUpdate]) -> Factors:
    """The same as factors, float64: what `relative_error` compares with."""
    return {module: _stack(updates, module) for module in _alike(updates)}


def scaled(factors: Factors, scales: Mapping[str, float]) -> Factors:
    """The factors with their scale folded into B, float64."""
    return {module: _scaled(pair, scales[module]) for module, pair in factors.items()}


def joined(*several: Factors) -> Factors:
    """Factors of the sum of what each does, float64; scales must have been folded in."""
    return {module: _joined([factors[module] for factors in several]) for module in several[0]}


def relative_error(found: Mapping[str, Pair | Tensor], exact: Mapping[str, Pair | Tensor]) -> float:
    """Frobenius norm of what `found` misses of `exact`, over all modules, relative to that of `exact`; 0 for 0 of 0.

    Both hold a module's change as factors with the scale folded in (`scaled`, `stack`, `exact_mean`) or dense
    (`dense_mean`, `Fold.changes`). Factors on both sides are compared without a dense matrix.
    """
    assert found.keys() == exact.keys(), "both must be of the same modules"
    missed = math.hypot(*(_frobenius(_minus(found[module], change)) for module, change in exact.items()))
    length = math.hypot(*(_frobenius(change) for change in exact.values()))
    return missed / length if length else (math.inf if missed else 0.0)


def _minus(left: Pair | Tensor, right: Pair | Tensor) -> Pair | Tensor:
    if isinstance(left, Pair) and isinstance(right, Pair):
        return _joined([left, _scaled(right, -1.0)])
    return _dense(left) - _dense(right)


def _frobenius(change: Pair | Tensor) -> float:
    if isinstance(change, Pair):
        return torch.linalg.vector_norm(_core(change)[1]).item()
    return torch.linalg.vector_norm(change.double()).item()


class Fold:
    """What rounds have added to the base weights, by module: the sum of products of factors.

    Kept as factors while these are smaller than the weight, dense after that, in the dtype of the first.
    """

    def __init__(self) -> None:
        self.changes: dict[str, Pair | Tensor] = {}

    def add(self, factors: Factors) -> None:
        """Adds products B A, whose scale has been folded in."""
        for module, pair in factors.items():
            before = self.changes.get(module)
            if before is None:
                before = Pair(pair.A[:0], pair.B[:, :0])
            self.changes[module] = _added(before, pair)

    def tensors(self) -> Tensors:
        """For the wire and for checkpoints: `module`.fold_A and .fold_B, or `module`.fold."""
        held: Tensors = {}
        for module, change in self.changes.items():
            if isinstance(change, Pair):
                held |= {f"{module}.fold_A": change.A, f"{module}.fold_B": change.B}
            else:
                held[f"{module}.fold"] = change
        return held

    @classmethod
    def of(cls, tensors: Tensors) -> Fold:
        """The fold that gave these `tensors`. Raises UnusableReply for others."""
        fold = cls()
        for name, tensor in tensors.items():
            module, _, kind = name.rpartition(".")
            mate = tensors.get(f"{module}.fold_B" if kind == "fold_A" else f"{module}.fold_A")
            if kind == "fold":
                fold.changes[module] = tensor
            elif kind not in ("fold_A", "fold_B") or mate is None:
                raise UnusableReply(f"{name} is no part of a fold, or lacks its mate")
            elif kind == "fold_A":
                fold.changes[module] = _pair(module, {"A": tensor, "B": mate})
        return fold

    def apply(self, weights: Mapping[str, Tensor], transposed: Collection[str] = ()) -> Tensors:
        """The base weights with the sum in them, by module, in their dtype; given ones are not changed.

        Apply it to the weights of before the first round: it is the sum of all rounds.

        Args:
            weights: module -> [out, in], for each module of the fold; others are left out.
            transposed: modules that hold [in, out] (Conv1D of transformers: fan_in_fan_out in peft).

        Raises ValueError for a module without a weight, or with one of another shape.
        """
        return {module: self._applied(module, weights, module in transposed) for module in self.changes}

    def _applied(self, module: str, weights: Mapping[str, Tensor], is_transposed: bool) -> Tensor:
        if module not in weights:
            raise ValueError(f"no weight for {module}")
        weight, change = weights[module].detach(), _dense(self.changes[module])
        change = change.T if is_transposed else change
        if weight.shape != change.shape:
            raise ValueError(f"{module} has a weight of {list(weight.shape)}, the fold is {list(change.shape)}")
        return (weight.double() + change.to(weight.device)).to(weight.dtype)


def _added(before: Pair | Tensor, pair: Pair) -> Pair | Tensor:
    if isinstance(before, Tensor):
        return (before.double() + _dense(pair)).to(before.dtype)
    together = _rounded(_joined([before, pair]), before)
    num_outputs, num_inputs = together.shape
    if together.rank * (num_outputs + num_inputs) < num_outputs * num_inputs:
        return together
    return _dense(_joined([before, pair])).to(before.A.dtype)


def _dense(change: Pair | Tensor) -> Tensor:
    return change.B.double() @ change.A.double() if isinstance(change, Pair) else change.double()


def _core(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Q_B [out, .], core and Q_A [in, .], orthonormal columns on both sides: B A = Q_B core Q_A^T."""
    Q_B, R_B = torch.linalg.qr(pair.B.double())
    Q_A, R_A = torch.linalg.qr(pair.A.double().T)
    return Q_B, R_B @ R_A.T, Q_A


def _svd(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, .], S descending and V [., in] with B A = U diag(S) V."""
    Q_B, core, Q_A = _core(pair)
    U, S, V = torch.linalg.svd(core, full_matrices=False)
    return Q_B @ U, S, V @ Q_A.T


def _double(pair: Pair) -> Pair:
    return Pair(pair.A.double(), pair.B.double())


def _scaled(pair: Pair, scale: float) -> Pair:
    return Pair(pair.A.double(), pair.B.double() * scale)


def _joined(pairs: Sequence[Pair]) -> Pair:
    wide = [_double(pair) for pair in pairs]
    return Pair(torch.cat([pair.A for pair in wide]), torch.cat([pair.B for pair in wide], dim=1))


def _rounded(pair: Pair, like: Pair) -> Pair:
    return Pair(pair.A.to(like.A.dtype).contiguous(), pair.B.to(like.B.dtype).contiguous())


def _grown(tensor: Tensor, number: int, dim: int) -> Tensor:
    """With `number` zero rows (dim 0) or columns (dim 1) more."""
    shape = list(tensor.shape)
    shape[dim] = number
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)


def _shares(updates: Sequence[LoraUpdate]) -> list[float]:
    total = math.fsum(update.weight for update in updates)
    return [update.weight / total for update in updates]


def _alike(updates: Sequence[LoraUpdate]) -> Factors:
    """The factors of the first; all others must be of the same modules.

    Raises NoUpdates where there are none, UnusableReply for other modules or shapes, or a weight that is not positive.
    """
    if not updates:
        raise NoUpdates
    first = updates[0].factors
    for update in updates:
        if not 0 < update.weight < math.inf:
            raise UnusableReply(f"the weight of an update is {update.weight}: it must be above 0 and finite")
        for module in sorted(update.factors.keys() ^ first.keys()):
            raise UnusableReply(f"{module} has factors of some clients alone: all must adapt the same modules")
        for module, pair in update.factors.items():
            if pair.shape != first[module].shape:
                raise UnusableReply(
                    f"{module} has factors of a weight of {list(pair.shape)} and of {list(first[module].shape)}"
                )
    return first


def _require_one_rank(updates: Sequence[LoraUpdate], rule: str) -> None:
    for module in _alike(updates):
        ranks = sorted({update.factors[module].rank for update in updates})
        if len(ranks) > 1:
            raise UsageError(
                f"federated.lora={rule} needs one rank, and {module} comes with {', '.join(map(str, ranks))}: choose "
                "stack, svd or zero_pad"
            )
