"""How the updates of a round become the server's new tensors: the mean, under privacy by client, or of masked sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from privlm.errors import UsageError
from privlm.federated.aggregate import Tensors, clipped, difference, mean
from privlm.federated.messages import Update
from privlm.federated.secured import Secured
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.noise import Noise
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.release import release
from privlm.privacy.watch import ReleaseCheck

_ROUNDING = 1e-6  # of float32, which must not take the norm of a clipped update above the bound


def weighted(state: Tensors, updates: Iterable[Update]) -> Tensors:
    """Sum of p_k w_k, p_k the weight over the sum of the weights of this round's replies."""
    return mean((update.tensors, update.weight) for update in updates)


def secured(state: Tensors, updates: Iterable[Update], secure: Secured) -> Tensors:
    """The same from masked updates, of which only the sum is readable."""
    return _moved(state, secure.mean(updates))


@dataclass
class ByClient:
    """The Gaussian mechanism over clients.

    Guarantee: each client adds to the sum a vector of norm at most plan.clipping_norm over all that travels, weights at
    most 1 included; `privlm.privacy.release` accounts for the round, adds noise and divides by the expected number of
    clients, never by the number of replies. What is not a trained parameter stays as the server has it.

    names: of the trained parameters. secure: where clients have clipped, weighted and masked by themselves.
    """

    plan: PrivacyPlan
    noise: Noise
    ledger: Ledger
    names: tuple[str, ...]
    round: int = 0
    secure: Secured | None = None

    def __post_init__(self) -> None:
        self._check = ReleaseCheck(self.plan.clipping_norm)

    def __call__(self, state: Tensors, updates: Iterable[Update]) -> Tensors:
        """Raises as `release` does; an empty round releases noise alone."""
        sums = {name: torch.zeros_like(state[name], dtype=torch.float32) for name in self._names(state)}
        if self.secure is None:
            number = self._add(sums, state, updates)
        else:
            total, number = self.secure.sum(updates)
            sums = {name: total[name].contiguous() if number else value for name, value in sums.items()}
        plan = self.plan
        setting = Setting(
            plan.sampling_rate, plan.noise_multiplier, plan.clipping_norm, plan.expected_batch_size, plan.unit
        )
        released = release(
            list(sums.values()),
            self.noise,
            step=self.round,
            setting=setting,
            num_units=number,
            check=self._check,
            world=None,
            ledger=self.ledger,
        )
        return _moved(state, dict(zip(sums, released, strict=True)))

    def _names(self, state: Tensors) -> list[str]:
        return [name for name in self.names if name in state]

    def _add(self, sums: Tensors, state: Tensors, updates: Iterable[Update]) -> int:
        number = 0
        for update in updates:
            delta = difference({name: update.tensors[name] for name in sums}, {name: state[name] for name in sums})
            for name, change in clipped(delta, self.plan.clipping_norm * (1 - _ROUNDING)).items():
                sums[name].add_(change, alpha=update.weight)
            number += 1
        return number


def refuse_buffers(state: Tensors, names: Iterable[str]) -> None:
    """Raises UsageError for running statistics, which are sums over a client's rows that nobody clips."""
    others = [name for name, value in state.items() if name not in set(names) and value.is_floating_point()]
    if others:
        raise UsageError(
            f"privacy=dp_fedavg: {others[0]} is a running statistic of clients' rows, which the mechanism does not "
            "cover: use a model with GroupNorm or LayerNorm in place of BatchNorm"
        )


def _moved(state: Tensors, delta: Mapping[str, Tensor]) -> Tensors:
    return {
        name: (value.double() + delta[name].double()).to(value.dtype) if name in delta else value
        for name, value in state.items()
    }
