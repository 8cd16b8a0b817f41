"""The contract of a federated strategy: what a client does, what stays with it, and what the server makes of the rest.

A strategy is one object for both sides, so that it reads like its algorithm. Its client's methods keep nothing in
`self`: what a client remembers is in `local.personal`, since any process may do the work of any client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import nn

from privlm.federated.aggregate import Tensors
from privlm.federated.messages import Update
from privlm.training.objective import Objective

Merge = Callable[[Iterable[Update]], Tensors]
"""Makes the server's new tensors of the updates of a round (privlm.federated.averaging), which it reads once."""


class Local(Protocol):
    """A client at work in one round (privlm.federated.local), as a strategy sees it.

    model: holds what came from the server, and the client's own parts. objective: of the task.
    received: the server's tensors of the model; received_beside: what the strategy sends besides.
    personal: what the client keeps from round to round, under the names of the model's tensors or of a kind.
    num_steps: of a round. num_rows: of the client.
    """

    model: nn.Module
    objective: Objective
    received: Tensors
    received_beside: Tensors
    personal: Tensors
    num_steps: int
    num_rows: int

    def fit(
        self,
        objective: Objective | None = None,
        *,
        steps: int | None = None,
        only: Callable[[str], bool] | None = None,
        learning_rate: float | None = None,
        purpose: str = "train",
    ) -> float:
        """Trains on the client's rows; returns the sum of the learning rates of the steps taken.

        steps: of a round where None. only: names of the parameters that train; running statistics of modules of which
        nothing does stay as they are. learning_rate: of all that trains, in place of the trainer's and of
        trainer.learning_rates. purpose: of several trainings in a round each has its own, so that they draw
        other batches and dropout.
        """
        ...

    def tensors(self) -> Tensors:
        """What travels of the model as it is now, copied."""
        ...

    def put(self, tensors: Tensors) -> None:
        """Copies tensors into the model."""
        ...

    def own_model(self) -> Tensors:
        """The tensors of the model that the client keeps; empty before its first `keep_model`."""
        ...

    def keep_model(self) -> None:
        """Makes the model as it is the client's own."""
        ...

    def send(self, tensors: Tensors) -> None:
        """Sends tensors of a kind beside the model."""
        ...


class Strategy:
    """FedAvg (McMahan et al., AISTATS 2017): clients train, the server averages. Other strategies derive from it.

    config: of the group `federated`.
    """

    is_exchanged = True
    """False where nothing of the model ever leaves a client."""

    is_personal_model = False
    """Whether a client's model in the end is another than the server's."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def bind(self, model: nn.Module, num_clients: int) -> None:
        """Told once, before the first round, what is trained and how many clients there are."""

    def is_personal(self, name: str) -> bool:
        """Whether a tensor of the model stays with its client: it never travels."""
        return False

    # --- the client ------------------------------------------------------------------------------------------------

    def train(self, local: Local) -> None:
        """The client's work of a round. The model holds what came from the server, and the client's own parts."""
        local.fit()

    def personalise(self, local: Local) -> None:
        """After the last round: makes the model that the client uses."""

    def steps_of_round(self, num_steps: int) -> int:
        """Steps on the client's rows that `train` takes where a round has `num_steps`."""
        return num_steps

    def steps_of_personalising(self, num_steps: int, num_rows: int) -> int:
        """The same of `personalise`, for a client with so many rows."""
        return 0

    # --- the server ------------------------------------------------------------------------------------------------

    def sent(self) -> Tensors:
        """What goes to the clients beside the model (privlm.federated.messages.named)."""
        return {}

    def aggregate(self, state: Tensors, updates: Iterable[Update], merge: Merge) -> Tensors:
        """The server's new tensors. A round that is given up is forgotten by `load_state_dict`."""
        return merge(updates)

    def state_dict(self) -> dict[str, Any]:
        """What the rounds change in the server's part of the strategy."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
