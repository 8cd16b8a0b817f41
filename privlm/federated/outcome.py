"""How the rounds of a federation ended, and the models that came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from privlm.federated.client_state import ClientStore
from privlm.federated.federation import Federation
from privlm.federated.messages import of_model
from privlm.federated.server import RoundTold, Server


@dataclass(frozen=True)
class FederatedOutcome:
    """status: done or budget_reached; digest: of the server's tensors.

    steps, examples: of all clients together; an example counts each time that it is seen. replies, failures: of
    clients in rounds. bytes_up, bytes_down: of all messages, as they were packed. All but rounds and digest are None
    where whom a round asks is the secret of a sampling that privacy relies on.
    """

    status: str
    rounds: int
    digest: str
    steps: int | None = 0
    examples: int | None = 0
    replies: int | None = 0
    failures: int | None = 0
    bytes_up: int | None = 0
    bytes_down: int | None = 0

    def after(self, told: RoundTold, batch_size: int) -> FederatedOutcome:
        """With one more round in it."""
        steps = sum(update.num_steps for update in told.updates)
        more = {
            "steps": steps,
            "examples": steps * batch_size,
            "replies": len(told.updates),
            "failures": len(told.failures),
            "bytes_up": told.bytes_up,
            "bytes_down": told.bytes_down,
        }
        return replace(self, rounds=self.rounds + 1, **{name: getattr(self, name) + n for name, n in more.items()})

    def without_sampling(self) -> FederatedOutcome:
        """Without what tells how many clients were asked."""
        return FederatedOutcome(self.status, self.rounds, self.digest, None, None, None, None, None, None)


class Federated:
    """A federation whose rounds are done; `federation.loaded.model` is the server's model."""

    def __init__(
        self, federation: Federation, outcome: FederatedOutcome, server: Server, store: ClientStore, num_rounds: int
    ) -> None:
        self.federation = federation
        self.outcome = outcome
        self.server = server
        self._store = store
        self._end = num_rounds + 2  # after personalisation

    @contextlib.contextmanager
    def model_of(self, client: str) -> Iterator[nn.Module]:
        """The model that a client uses, in the place of the server's."""
        self.put(client)
        try:
            yield self.federation.loaded.model
        finally:
            self.put_servers()

    def put(self, client: str) -> None:
        """See `model_of`."""
        exchange = self.federation.exchange
        exchange.put(exchange.share_of(client, self.server.state), client)
        exchange.put(of_model(self._store.read(client, self._end)), client)

    def put_servers(self) -> None:
        """The server's model; parts that stay with clients are as they began."""
        self.federation.exchange.put(self.server.personal | self.server.state)
