"""What the clients of a federation have in common, and whose rows are whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from privlm.errors import UsageError
from privlm.federated import lora_exchange
from privlm.federated.exchange import Exchange
from privlm.federated.strategies import STRATEGIES
from privlm.federated.strategy import Strategy
from privlm.models.loaded import Loaded
from privlm.training.batches import TrainingData, num_steps
from privlm.training.objective import Objective


@dataclass(frozen=True)
class Federation:
    """Model, objective and data of clients, as the server and every process that works for clients makes it.

    config: with the groups federated, trainer and privacy (privlm.config.Config, or any object with these fields).
    data: client -> its rows. strategy: by federated.name where it is None.

    Raises UsageError for a federation without clients, a client without rows, and as the strategy does for the model.
    """

    config: Any
    loaded: Loaded
    objective: Objective
    data: Mapping[str, TrainingData]
    strategy: Strategy = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("the federation has no clients: federated.partition says whose a row is")
        for client, rows in self.data.items():
            if not len(rows):
                raise UsageError(f"client {client} has no rows: leave it out, or choose another federated.partition")
        if self.strategy is None:
            object.__setattr__(self, "strategy", STRATEGIES[self.config.federated.name](self.config.federated))
        lora_exchange.prepare(self.config.federated.lora, self.loaded.model)
        self.strategy.bind(self.loaded.model, len(self.data))

    @property
    def clients(self) -> list[str]:
        return list(self.data)

    @cached_property
    def exchange(self) -> Exchange:
        """Of the model, which must be on its device by then."""
        return self.exchange_of(self.loaded.model)

    def exchange_of(self, model: nn.Module) -> Exchange:
        """The same of another model that was built like it."""
        federated = self.config.federated
        if federated.lora == "separate" and not federated.report_lora_error:
            return Exchange(model, self.strategy.is_personal)
        lora_exchange.prepare(federated.lora, model)
        return lora_exchange.EXCHANGES[federated.lora](model, self.strategy.is_personal, federated)

    def steps_of_round(self, client: str) -> int:
        """Steps on the client's rows in a round that it takes part in."""
        return self.strategy.steps_of_round(self.num_steps(client))

    def steps_of_personalising(self, client: str) -> int:
        """The same of what it does after the last round."""
        return self.strategy.steps_of_personalising(self.num_steps(client), len(self.data[client]))

    def num_steps(self, client: str) -> int:
        """trainer.steps, or those of trainer.epochs."""
        return num_steps(self.config.trainer, len(self.data[client]))


Make = Callable[[], Federation]
"""Makes a federation in another process; can be pickled."""
