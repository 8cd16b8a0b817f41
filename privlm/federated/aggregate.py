"""What a server computes from the tensors of its clients: pure functions on state dicts.

Sums are made in float64 and rounded once, to the dtype of each tensor. Nothing here changes what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from privlm.errors import PrivLMError, UsageError

Tensors = dict[str, Tensor]
"""A state dict or a part of one: name -> tensor."""


class NoUpdates(PrivLMError):
    """A round in which no client sent anything that can be used."""

    def __init__(self) -> None:
        super().__init__("no client sent an update that can be used: nothing to take the mean of")


class UnusableReply(PrivLMError):
    """What a client sent cannot be used. The message says why; the round goes on without this client."""


class Mean:
    """The running weighted mean of state dicts, sum of w_k x_k over sum of w_k (FedAvg: McMahan et al., AISTATS 2017).

    Holds one float64 copy, whatever the number of clients, and for a moment a few of one tensor. Integer tensors
    (num_batches_tracked) take the maximum, bool ones are or-ed; dtypes stay. The mean of one state dict, or of equal
    ones, is that state dict bit for bit.
    """

    def __init__(self) -> None:
        self._like: Tensors = {}  # shapes and dtypes, on the device meta
        self._mean: Tensors = {}
        self._weight = 0.0

    def add(self, tensors: Tensors, weight: float) -> None:
        """Takes the tensors of one client.

        They are not looked at, `fault_of` does that: one NaN makes the mean NaN. Raises UnusableReply, with the mean as
        it was, for a weight that is not positive, and for other names, shapes or dtypes than those of the first client.
        """
        _require_positive(weight, "the weight of an update")
        if not self._mean:
            self._like = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
            self._mean = {name: _wide(tensor) for name, tensor in tensors.items()}
        elif misfit := _misfit(tensors, self._like):
            raise UnusableReply(f"{misfit}, which the update of the first client is not like")
        self._weight += weight
        for name, mean in self._mean.items():
            self._mean[name] = _moved(mean, _wide(tensors[name]), weight / self._weight)

    def result(self) -> Tensors:
        """The mean so far, in the dtypes that were given. Raises NoUpdates where there is none."""
        if not self._mean:
            raise NoUpdates
        return {name: mean.to(self._like[name].dtype, copy=True) for name, mean in self._mean.items()}


def mean(pairs: Iterable[tuple[Tensors, float]]) -> Tensors:
    """The mean of pairs of tensors and their weight, as of `Mean`."""
    total = Mean()
    for tensors, weight in pairs:
        total.add(tensors, weight)
    return total.result()


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.double() if tensor.is_floating_point() else tensor


def _moved(mean: Tensor, x: Tensor, share: float) -> Tensor:
    """The mean with x in it, whose share of all weight is `share`. A value that both have stays, infinity too."""
    if mean.is_floating_point():
        return torch.where(mean == x, mean, mean.lerp(x, share))
    return torch.maximum(mean, x)


def difference(after: Tensors, before: Tensors) -> Tensors:
    """after - before of the floating tensors, float32; 0 where both are equal, infinities too.

    Raises ValueError where names or shapes differ.
    """
    if misfit := _misfit(after, before, dtypes=False):
        raise ValueError(misfit)
    return {
        name: torch.where(x == before[name], 0, _wide(x) - _wide(before[name])).float()
        for name, x in after.items()
        if x.is_floating_point()
    }


def add(base: Tensors, delta: Tensors, scale: float = 1.0) -> Tensors:
    """base + scale * delta, in the dtypes of `base`; tensors without a delta are those of `base`.

    Raises ValueError for a delta of no tensor, or of another shape.
    """
    if misfit := _misfit(delta, {name: base[name] for name in delta if name in base}, dtypes=False):
        raise ValueError(misfit)
    moved = {name: (_wide(base[name]) + scale * _wide(change)).to(base[name].dtype) for name, change in delta.items()}
    return base | moved


def norm(tensors: Tensors) -> float:
    """The L2 norm of all floating tensors together."""
    found = [torch.linalg.vector_norm(_wide(x)).item() for x in tensors.values() if x.is_floating_point()]
    return math.hypot(*found)


def clipped(tensors: Tensors, bound: float) -> Tensors:
    """Floating tensors scaled down together to an L2 norm of at most `bound`; as they are where it is no more."""
    length = norm(tensors)
    if length <= bound:
        return dict(tensors)
    scale = bound / length
    return {name: (_wide(x) * scale).to(x.dtype) if x.is_floating_point() else x for name, x in tensors.items()}


def fault_of(tensors: Tensors, like: Tensors, *, received: Tensors | None = None) -> str | None:
    """Why tensors of a client cannot be used, by name; None where they can.

    Args:
        like: names, shapes and dtypes that are expected.
        received: what the client was sent. Infinities that it only gives back (those of a mask that is a buffer) are no
            fault of its own.
    """
    if not tensors:
        return "no tensor came"
    return _misfit(tensors, like) or _not_finite(tensors, received or {})


def is_unchanged(tensors: Tensors, received: Tensors) -> bool:
    """Whether every floating tensor is the one that the client was sent: it has trained nothing."""
    return all(
        name in received and torch.equal(x, received[name]) for name, x in tensors.items() if x.is_floating_point()
    )


def _misfit(tensors: Tensors, like: Tensors, *, dtypes: bool = True) -> str | None:
    """The first tensor that is absent, unknown or of another kind than the one in `like`."""
    for name in sorted(tensors.keys() ^ like.keys()):
        return f"{name} is missing" if name in like else f"{name} is unknown"
    for name, tensor in tensors.items():
        if tensor.shape != like[name].shape or (dtypes and tensor.dtype != like[name].dtype):
            return f"{name} is {_kind(tensor)}, not {_kind(like[name])}"
    return None


def _not_finite(tensors: Tensors, received: Tensors) -> str | None:
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor)
        if name in received:
            bad &= tensor != received[name]
        if count := int(bad.sum()):
            return f"{name} holds NaN or infinity ({count} of {tensor.numel()} values)"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _samples(num_examples: float, max_weight: float | None) -> float:
    return float(num_examples)


def _uniform(num_examples: float, max_weight: float | None) -> float:
    return 1.0


def _clipped(num_examples: float, max_weight: float | None) -> float:
    if max_weight is None or not 0 < max_weight < math.inf:
        raise UsageError(f"federated.max_weight={max_weight}: federated.weights=clipped needs a number above 0")
    return float(min(num_examples, max_weight))


WEIGHTINGS: dict[str, Callable[[float, float | None], float]] = {
    "samples": _samples,
    "uniform": _uniform,
    "clipped": _clipped,
}
"""federated.weights -> the weight of a client, of its number of examples and federated.max_weight."""


def client_weight(weighting: str, num_examples: float, max_weight: float | None = None) -> float:
    """The weight of a client in the mean of a round.

    Raises UnusableReply for a number of examples that is not positive, UsageError where `clipped` has no max_weight.
    """
    _require_positive(num_examples, "its number of examples")
    return WEIGHTINGS[weighting](num_examples, max_weight)


def _require_positive(value: float, what: str) -> None:
    if not 0 < value < math.inf:
        raise UnusableReply(f"{what} is {value}: it must be above 0 and finite")
