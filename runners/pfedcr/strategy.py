"""pFedCR as a strategy: the server tunes the output layer after each average, clients end with models of their own.

The abstracts of arXiv 2305.05602 (v1, v2) say what is done in which order; how long and how fast are keys of the task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from privlm.federated.aggregate import Tensors
from privlm.federated.messages import Update
from privlm.federated.strategy import Local, Merge, Strategy
from privlm.privacy import keyed_random
from privlm.training.state import put, trained_tensors

from .line_data import LineData
from .partial_training import mixed, steps_of, tune_output
from .recogniser import is_attention, is_output


class PFedCR(Strategy):
    """config: of a run. virtual: makes the server's balanced lines, on the day that it needs them."""

    is_personal_model = True

    def __init__(self, config: Any, virtual: Callable[[], LineData]) -> None:
        super().__init__(config.federated)
        self.task, self.trainer, self.seed = config.task, config.trainer, config.seed
        self.num_tuned = 0
        """Rounds after which the output layer was tuned."""
        self._make_virtual = virtual
        self._virtual: LineData | None = None

    def bind(self, model: nn.Module, num_clients: int) -> None:
        self.model = model

    # --- the client ------------------------------------------------------------------------------------------------

    def personalise(self, local: Local) -> None:
        """A local epoch; the average with what the server sent; then the gates alone, statistics as they are."""
        own = self.task.personalise
        if steps := steps_of(self.trainer, own.epochs, local.num_rows):
            local.fit(steps=steps, purpose="personalise")
        local.put(mixed(local.tensors(), local.received, own.mix))
        if steps := steps_of(self.trainer, own.attention_epochs, local.num_rows):
            rate = own.attention_learning_rate
            local.fit(steps=steps, only=is_attention, learning_rate=rate, purpose="attention")
        local.keep_model()

    def steps_of_personalising(self, num_steps: int, num_rows: int) -> int:
        own = self.task.personalise
        return sum(steps_of(self.trainer, epochs, num_rows) for epochs in (own.epochs, own.attention_epochs))

    # --- the server ------------------------------------------------------------------------------------------------

    def aggregate(self, state: Tensors, updates: Iterable[Update], merge: Merge) -> Tensors:
        """The average, whose output layer then learns the balanced lines; all else of it keeps its bytes."""
        merged = merge(updates)
        if not self.task.server.virtual_epochs:
            return merged
        self.num_tuned += 1
        tensors = trained_tensors(self.model, dict(self.model.named_parameters()))
        put(merged, tensors)
        seed = keyed_random.key_bits("server's tuning", self.seed, self.num_tuned) >> 65
        tune_output(self.model, self._lines(), self.trainer, self.task.server, seed=seed)
        tuned = {name: tensors[name].detach().cpu().clone() for name in merged if is_output(name)}
        return merged | tuned

    def _lines(self) -> LineData:
        if self._virtual is None:
            self._virtual = self._make_virtual()
        return self._virtual

    def state_dict(self) -> dict[str, Any]:
        return {"num_tuned": self.num_tuned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_tuned = state["num_tuned"]
