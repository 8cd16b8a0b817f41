"""The strategies, each about as long as its rule. g: the server's model, w: a client's, d = w - g: its update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from privlm.errors import UsageError
from privlm.federated.aggregate import Tensors
from privlm.federated.messages import Update, named, of_kind
from privlm.federated.objectives import Corrected, Proximal
from privlm.federated.strategy import Local, Merge, Strategy

CONTROL = "control"


class Alone(Strategy):
    """Every client by itself: the whole model is personal."""

    is_exchanged = False
    is_personal_model = True

    def is_personal(self, name: str) -> bool:
        return True

    def aggregate(self, state: Tensors, updates: Iterable[Update], merge: Merge) -> Tensors:
        for _ in updates:  # who has trained is told, nothing else
            pass
        return state


class FedAvgFineTuned(Strategy):
    """FedAvg, whose final model each client trains once more: the baseline of all personalised strategies."""

    is_personal_model = True

    def personalise(self, local: Local) -> None:
        steps = self.steps_of_personalising(local.num_steps, local.num_rows)
        local.fit(steps=steps, purpose="personalise")
        local.keep_model()

    def steps_of_personalising(self, num_steps: int, num_rows: int) -> int:
        return self.config.personal_steps or num_steps


class FedProx(Strategy):
    """Local loss + mu/2 |w - g|^2 over what trains (Li et al., MLSys 2020); mu = 0 is FedAvg."""

    def train(self, local: Local) -> None:
        if not self.config.proximal:
            local.fit()
            return
        local.fit(Proximal(local.objective, local.received, self.config.proximal))


class Scaffold(Strategy):
    """SCAFFOLD, option II (Karimireddy et al., ICML 2020): steps along gradient + c - c_k.

    After K steps of rate lr: c_k becomes c_k - c + (g - w) / (K lr), and c moves by the mean change over all clients.
    """

    def bind(self, model: nn.Module, num_clients: int) -> None:
        self.num_clients = num_clients
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.control = {name: torch.zeros_like(value, device="cpu") for name, value in trained.items()}

    def train(self, local: Local) -> None:
        c = of_kind(CONTROL, local.received_beside)
        own = of_kind(CONTROL, local.personal) or {name: torch.zeros_like(value) for name, value in c.items()}
        distance = local.fit(Corrected(local.objective, {name: c[name] - own[name] for name in c}))
        trained = local.tensors()
        new = {name: own[name] - c[name] + (local.received[name] - trained[name]) / distance for name in c}
        local.personal = named(CONTROL, new)
        local.send(named(CONTROL, {name: new[name] - own[name] for name in c}))

    def sent(self) -> Tensors:
        return named(CONTROL, self.control)

    def aggregate(self, state: Tensors, updates: Iterable[Update], merge: Merge) -> Tensors:
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in self.control.items()}

        def summed() -> Iterator[Update]:
            for update in updates:
                for name, change in of_kind(CONTROL, update.extra).items():
                    total[name] += change
                yield update

        merged = merge(summed())
        self.control = {name: (c + total[name] / self.num_clients).to(c.dtype) for name, c in self.control.items()}
        return merged

    def state_dict(self) -> dict[str, Any]:
        return {"control": self.control}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.control = dict(state["control"])


class ServerOptimizer(Strategy):
    """The mean update d as the gradient of the server's optimizer (Hsu et al. 2019; Reddi et al., ICLR 2021).

    Buffers are averaged: no optimizer moves a running mean.
    """

    def bind(self, model: nn.Module, num_clients: int) -> None:
        self.names = [name for name, value in model.named_parameters() if value.requires_grad]
        self.momentum: Tensors = {}
        self.second: Tensors = {}

    def aggregate(self, state: Tensors, updates: Iterable[Update], merge: Merge) -> Tensors:
        merged = merge(updates)
        for name in self.names:
            if name in merged:
                d = merged[name].double() - state[name].double()
                moved = state[name].double() + self.config.server_learning_rate * self.step(name, d)
                merged[name] = moved.to(state[name].dtype)
        return merged

    def step(self, name: str, d: Tensor) -> Tensor:
        """The direction, in float64. m, v: running means of d and of its square."""
        if self.config.name == "fedavgm":
            return self._heavy_ball(name, d)
        b1, b2 = self.config.server_betas
        tau, square = self.config.server_tau, d.square()
        m = self.momentum[name] = b1 * self.momentum.get(name, torch.zeros_like(d)) + (1 - b1) * d
        v = self.second.get(name, torch.full_like(d, tau**2))
        v = {
            "fedadagrad": lambda: v + square,
            "fedadam": lambda: b2 * v + (1 - b2) * square,
            "fedyogi": lambda: v - (1 - b2) * square * torch.sign(v - square),
        }[self.config.name]()
        self.second[name] = v
        return m / (v.sqrt() + tau)

    def _heavy_ball(self, name: str, d: Tensor) -> Tensor:
        beta, before = self.config.server_momentum, self.momentum.get(name)
        new = d if self.config.momentum_form == "classic" or before is None else (1 - beta) * d
        self.momentum[name] = new if before is None else beta * before + new
        return self.momentum[name]

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "second": self.second}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.momentum, self.second = dict(state["momentum"]), dict(state["second"])


class FedBN(Strategy):
    """Normalisation layers, statistics included, stay with the client (Li et al., ICLR 2021)."""

    is_personal_model = True

    def bind(self, model: nn.Module, num_clients: int) -> None:
        modules = {name for name, module in model.named_modules() if self._is_norm(module)}
        if not modules:
            raise UsageError(
                f"federated=fedbn: the model has no normalisation layers of kind federated.norm_keys="
                f"{self.config.norm_keys}: take norm_keys=all, or federated=fedavg"
            )
        self.modules = modules

    def is_personal(self, name: str) -> bool:
        return name.rpartition(".")[0] in self.modules

    def _is_norm(self, module: nn.Module) -> bool:
        is_other = type(module).__name__.endswith("Norm") and self.config.norm_keys == "all"
        return isinstance(module, _BatchNorm) or is_other


class FedRep(Strategy):
    """A head of each client's own on a common body (Collins et al., ICML 2021): head first, then body."""

    is_personal_model = True

    def bind(self, model: nn.Module, num_clients: int) -> None:
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        heads = sum(map(self.is_personal, trained))
        if heads in (0, len(trained)):
            raise UsageError(
                f"federated.head={list(self.config.head)}: {'nothing' if not heads else 'everything'} that trains is "
                f"part of it; name parts of {', '.join(sorted({name.split('.')[0] for name in trained}))}"
            )

    def is_personal(self, name: str) -> bool:
        return any(part in self.config.head for part in name.split("."))

    def train(self, local: Local) -> None:
        local.fit(steps=self._head_steps(local.num_steps), only=self.is_personal, purpose="head")
        local.fit(only=lambda name: not self.is_personal(name), purpose="body")

    def steps_of_round(self, num_steps: int) -> int:
        return num_steps + self._head_steps(num_steps)

    def _head_steps(self, num_steps: int) -> int:
        return self.config.personal_steps or num_steps


class Ditto(Strategy):
    """Beside FedAvg each client trains a model v of its own, F(v) + lambda/2 |v - g|^2 (Li et al., ICML 2021)."""

    is_personal_model = True

    def train(self, local: Local) -> None:
        local.fit()
        of_server = local.tensors()
        local.put(local.received | local.own_model())
        near = Proximal(local.objective, local.received, self.config.proximal)
        local.fit(near, steps=self._own_steps(local.num_steps), purpose="ditto")
        local.keep_model()
        local.put(of_server)

    def steps_of_round(self, num_steps: int) -> int:
        return num_steps + self._own_steps(num_steps)

    def _own_steps(self, num_steps: int) -> int:
        return self.config.personal_steps or num_steps


class PFedMe(Strategy):
    """A model theta of each client's own, and w that follows it (Dinh, Tran and Nguyen, NeurIPS 2020).

    In turn: theta minimises F(theta) + lambda/2 |theta - w|^2 for some steps, w <- w - eta lambda (w - theta). The
    server averages w. Buffers are those of theta.
    """

    is_personal_model = True

    def train(self, local: Local) -> None:
        w, share = local.tensors(), self.config.outer_learning_rate * self.config.proximal
        trained = {name for name, value in local.model.named_parameters() if value.requires_grad}
        for number, steps in enumerate(self._turns(local.num_steps)):
            near = Proximal(local.objective, w, self.config.proximal)
            local.fit(near, steps=steps, purpose=f"theta{number}")
            theta = local.tensors()
            w = {name: torch.lerp(w[name], value, share) if name in trained else value for name, value in theta.items()}
        local.keep_model()
        local.put(w)

    def _turns(self, num_steps: int) -> list[int]:
        """Steps of theta in each turn, the last of which may be shorter."""
        most = self.config.personal_steps or num_steps
        return [min(most, num_steps - start) for start in range(0, num_steps, most)]


STRATEGIES: dict[str, Callable[[Any], Strategy]] = {
    "local": Alone,
    "fedavg": Strategy,
    "fedavg_ft": FedAvgFineTuned,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    **dict.fromkeys(("fedavgm", "fedadagrad", "fedadam", "fedyogi"), ServerOptimizer),
    "fedbn": FedBN,
    "fedrep": FedRep,
    "ditto": Ditto,
    "pfedme": PFedMe,
}
"""federated.name -> strategy; a runner may hand in one of its own."""
