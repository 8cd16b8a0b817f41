"""How LoRA factors travel and are made one (federated.lora; the rules are in privlm.federated.lora).

stack and residual put a part of what was learnt into the base weights. The server sends it with its factors: the sum of
all rounds, so that a client which missed some has everything, as factors while these are smaller than the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.federated import lora
from privlm.federated.aggregate import Tensors
from privlm.federated.exchange import Average, Exchange
from privlm.federated.kept import base_weight, with_base
from privlm.federated.lora import Factors, Fold, LoraUpdate
from privlm.federated.messages import Update
from privlm.models.loaded import Loaded
from privlm.privacy import keyed_random

ADAPTER = "default"


def prepare(rule: str, model: nn.Module) -> None:
    """Freezes what the rule does not train. Before anything asks what trains."""
    if rule == "ffa":
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)


class LoraExchange(Exchange):
    """Factors averaged apart (separate); others derive from it. Tensors that are no factors are averaged as ever.

    config: of the group `federated`; its ranks are those of clients that train fewer directions than the model holds:
    what they lack is zero on both sides, and gets no gradient.
    """

    def __init__(self, model: nn.Module, is_personal: Callable[[str], bool], config: Any) -> None:
        super().__init__(model, is_personal)
        self.modules = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        self.scales = {name: float(module.scaling[ADAPTER]) for name, module in self.modules.items()}
        self.rank = max(pair.rank for pair in lora.pairs(self._factors_of(self.tensors)).values())
        self.ranks = dict(config.ranks)
        self.reports_error = config.report_lora_error
        self._base: Tensors = {}
        self._applied: Tensors = {}
        for client, rank in self.ranks.items():
            if rank > self.rank:
                raise UsageError(f"federated.ranks.{client}={rank} is above adapter.rank={self.rank}: lower it")

    # --- a client's share ------------------------------------------------------------------------------------------

    def take(self, client: str | None = None) -> Tensors:
        tensors = super().take()
        rank = self._rank_of(client)
        return tensors if rank == self.rank else self._with(tensors, lora.cut(self._pairs(tensors), rank))

    @torch.no_grad()
    def put(self, tensors: Tensors, client: str | None = None) -> None:
        fold = {name: value for name, value in tensors.items() if _is_fold(name)}
        if fold:
            self._apply(fold)
        rank = self._rank_of(client)
        for name, module in self.modules.items():
            module.scaling[ADAPTER] = self._scales(rank)[name]
        plain = {name: value for name, value in tensors.items() if name not in fold}
        super().put({name: self._grown(name, value) for name, value in plain.items()})

    def share_of(self, client: str, state: Tensors) -> Tensors:
        rank = self._rank_of(client)
        return state if rank == self.rank else self._with(state, self._cut(self._pairs(state), rank))

    def like(self, client: str, state: Tensors) -> Tensors:
        return {name: value for name, value in self.share_of(client, state).items() if not _is_fold(name)}

    def _cut(self, factors: Factors, rank: int) -> Factors:
        """What a client of a lower rank gets of the server's factors, for its own scale."""
        own = self._scales(rank)
        return {
            name: lora.Pair(pair.A, (pair.B.double() * self.scales[name] / own[name]).to(pair.B.dtype))
            for name, pair in lora.cut(factors, rank).items()
        }

    def _rank_of(self, client: str | None) -> int:
        return self.rank if client is None else self.ranks.get(client, self.rank)

    def _scales(self, rank: int) -> dict[str, float]:
        """alpha / rank of a client."""
        return {name: scale * self.rank / rank for name, scale in self.scales.items()}

    def _grown(self, name: str, value: Tensor) -> Tensor:
        """Zeros for the directions that a client lacks."""
        target = self.tensors.get(name)
        if target is None or ".lora_" not in name or target.shape == value.shape:
            return value
        grown = torch.zeros_like(target, device=value.device)
        grown[tuple(slice(size) for size in value.shape)] = value
        return grown

    # --- the server ------------------------------------------------------------------------------------------------

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        if not self.reports_error:
            return average(state, updates)
        kept = list(updates)
        merged = average(state, kept)
        self._report(self._of(kept), lora.scaled(self._pairs(merged), self.scales))
        return merged

    def _report(self, updates: list[LoraUpdate], found: Mapping[str, Any]) -> None:
        self.error = lora.relative_error(found, lora.exact_mean(updates)) if self.reports_error and updates else None

    def _of(self, updates: Iterable[Update]) -> list[LoraUpdate]:
        return [
            LoraUpdate.of(self._factors_of(update.tensors), update.weight, self._scales(self._rank_of(update.client)))
            for update in updates
        ]

    def _split(self, state: Tensors, updates: Iterable[Update], average: Average) -> tuple[Tensors, list[LoraUpdate]]:
        """The mean of what is no factor, and the factors of all clients."""
        kept = list(updates)
        others = [
            replace(update, tensors={n: v for n, v in update.tensors.items() if ".lora_" not in n}) for update in kept
        ]
        plain = {name: value for name, value in state.items() if ".lora_" not in name and not _is_fold(name)}
        return (average(plain, others) if plain else {}), self._of(kept)

    def _pairs(self, tensors: Tensors) -> Factors:
        return lora.pairs(self._factors_of(tensors))

    @staticmethod
    def _factors_of(tensors: Tensors) -> Tensors:
        return {name: value for name, value in tensors.items() if ".lora_" in name}

    @staticmethod
    def _with(tensors: Tensors, factors: Factors) -> Tensors:
        return tensors | lora.named(factors, ADAPTER)

    # --- the base --------------------------------------------------------------------------------------------------

    def _apply(self, fold: Tensors) -> None:
        """The base weights of before the first round, with the sum of all rounds in them."""
        if fold.keys() == self._applied.keys() and all(torch.equal(fold[name], self._applied[name]) for name in fold):
            return
        if not self._base:
            self._base = {name: base_weight(module).detach().clone() for name, module in self.modules.items()}
        transposed = [name for name, module in self.modules.items() if getattr(module, "fan_in_fan_out", False)]
        for name, weight in Fold.of(fold).apply(self._base, transposed).items():
            base_weight(self.modules[name]).copy_(weight)
        self._applied = fold


class ZeroPadded(LoraExchange):
    """HetLoRA: see privlm.federated.lora.zero_pad."""

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        others, factors = self._split(state, updates, average)
        merged = {name: _grown_to(pair, self.rank) for name, pair in lora.zero_pad(factors, self.scales).items()}
        self._report(factors, lora.scaled(merged, self.scales))
        return self._with(others, merged)


class Truncated(LoraExchange):
    """FlexLoRA: the best factors of the model's rank; a client of a lower one gets the best of its own."""

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        others, factors = self._split(state, updates, average)
        merged = lora.svd(factors, self.rank, self.scales)
        self._report(factors, lora.scaled(merged, self.scales))
        return self._with(others, merged)

    def _cut(self, factors: Factors, rank: int) -> Factors:
        return (
            lora.truncate(lora.scaled(factors, self.scales), rank, self._scales(rank))
            if any(pair.B.any() for pair in factors.values())
            else lora.cut(factors, rank)
        )  # before the first round there is nothing to come close to


class Folded(LoraExchange):
    """Rules that change the base."""

    def kept(self, loaded: Loaded) -> Loaded:
        return with_base(loaded)

    def _folded(self, state: Tensors, factors: Factors) -> Tensors:
        fold = Fold.of({name: value for name, value in state.items() if _is_fold(name)})
        fold.add(factors)
        return fold.tensors()


class Stacked(Folded):
    """FLoRA: the exact mean goes into the base, and every round begins with new factors that do nothing yet."""

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        others, factors = self._split(state, updates, average)
        mean = lora.stack(factors)
        self._report(factors, mean)
        return self._with(others, self._fresh(state)) | self._folded(state, mean)

    def _fresh(self, state: Tensors) -> Factors:
        """As peft begins: A uniform within sqrt(1 / inputs), B zero."""
        return {name: self._begun(name, pair) for name, pair in self._pairs(state).items()}

    def _begun(self, name: str, pair: lora.Pair) -> lora.Pair:
        bound = 1 / math.sqrt(pair.A.shape[1])
        drawn = keyed_random.generator("stacked factors", self.round, name).uniform(-bound, bound, tuple(pair.A.shape))
        return lora.Pair(torch.from_numpy(drawn).to(pair.A.dtype), torch.zeros_like(pair.B))


class Residual(Folded):
    """FedEx-LoRA: means of the factors, and what they miss of the exact mean in the base."""

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        others, factors = self._split(state, updates, average)
        means, missed = lora.residual(factors, self.scales)
        self._report(factors, lora.joined(lora.scaled(means, self.scales), missed))
        return self._with(others, means) | self._folded(state, missed)


EXCHANGES: dict[str, Callable[[nn.Module, Callable[[str], bool], Any], Exchange]] = {
    "separate": LoraExchange,
    "ffa": lambda model, is_personal, config: Exchange(model, is_personal),  # A is frozen, B alone travels
    "stack": Stacked,
    "svd": Truncated,
    "residual": Residual,
    "zero_pad": ZeroPadded,
}
"""federated.lora -> what exchanges the factors."""


def _grown_to(pair: lora.Pair, rank: int) -> lora.Pair:
    """Zeros for directions that no client has."""
    missing = rank - pair.rank
    return lora.Pair(nn.functional.pad(pair.A, (0, 0, 0, missing)), nn.functional.pad(pair.B, (0, missing)))


def _is_fold(name: str) -> bool:
    return name.rpartition(".")[2].startswith("fold")
