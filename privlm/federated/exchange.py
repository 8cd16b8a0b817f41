"""What of a model travels, how it is put into the model, and how the server makes one of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from privlm.errors import PrivLMError
from privlm.federated.aggregate import Tensors
from privlm.federated.messages import Update
from privlm.models.loaded import Loaded
from privlm.training.state import trained_tensors

Average = Callable[[Tensors, Iterable[Update]], Tensors]
"""(state, updates) -> new state (privlm.federated.averaging); reads the updates once, and keeps none of them."""


class Exchange:
    """What training changes in `model`: parameters that require gradients, and persistent buffers.

    is_personal: names of them that stay with the client. The model must be on its device already.
    """

    def __init__(self, model: nn.Module, is_personal: Callable[[str], bool]) -> None:
        self.model = model
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self.tensors = trained_tensors(model, trained)
        """All of them, as they are in the model now and later."""
        self.error: float | None = None
        """Of the last merge, relative to the exact mean, where that is asked for and can differ."""
        self.round = 0
        """The one that is merged."""
        self.travelling = tuple(name for name in self.tensors if not is_personal(name))

    def take(self, client: str | None = None) -> Tensors:
        """What travels, copied. client: whose share of it, where shares differ; None: the server's."""
        return {name: self.tensors[name].cpu().clone() for name in self.travelling}

    def take_personal(self) -> Tensors:
        """What stays with the client, copied."""
        return {name: value.cpu().clone() for name, value in self.tensors.items() if name not in self.travelling}

    @torch.no_grad()
    def put(self, tensors: Tensors, client: str | None = None) -> None:
        """Copies these tensors into the model, of which others stay. Raises PrivLMError for one of another model."""
        for name, value in tensors.items():
            target = self.tensors.get(name)
            if target is None or target.shape != value.shape:
                shape = "no such tensor" if target is None else f"{list(target.shape)}"
                raise PrivLMError(f"{name} {list(value.shape)} does not fit the model ({shape})")
            target.copy_(value)

    def share_of(self, client: str, state: Tensors) -> Tensors:
        """What of the server's tensors goes to a client."""
        return state

    def like(self, client: str, state: Tensors) -> Tensors:
        """Tensors of the shapes that a client has to send back."""
        return self.share_of(client, state)

    def kept(self, loaded: Loaded) -> Loaded:
        """The model as it is saved and loaded when the rounds are done."""
        return loaded

    def merge(self, state: Tensors, updates: Iterable[Update], average: Average) -> Tensors:
        """The server's new tensors, of the updates of one round, which are read once."""
        return average(state, updates)
