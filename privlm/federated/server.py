"""The server of a federation: whom a round asks, what they are sent, and what becomes of the replies."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from privlm.errors import PrivLMError
from privlm.federated import averaging, wire
from privlm.federated.aggregate import Mean, NoUpdates, Tensors, client_weight
from privlm.federated.averaging import ByClient
from privlm.federated.engine import Engine
from privlm.federated.exchange import Average
from privlm.federated.federation import Federation
from privlm.federated.inbox import Inbox
from privlm.federated.messages import Task, Update, of_optimizer
from privlm.federated.sampling import sampled
from privlm.federated.secure_aggregation import TooFewSurvivors
from privlm.federated.secured import Secured
from privlm.federated.worker import PERSONALISE, TRAIN
from privlm.privacy import keyed_random
from privlm.privacy.plan import PrivacyPlan

logger = logging.getLogger("privlm")

RETRIES = 3
"""Of a round with too few replies, where federated.on_too_few=retry."""
MEGABYTE = 10**6


class TooFewReplies(PrivLMError):
    """A round without enough updates, where federated.on_too_few=fail or retries are used up."""


@dataclass(frozen=True)
class RoundTold:
    """What a round was: for logs and totals. lora_error: of the server's factors against the mean of the products."""

    updates: tuple[Update, ...]
    failures: Mapping[str, str]
    bytes_up: int
    bytes_down: int
    is_kept: bool
    lora_error: float | None = None


class Server:
    """state: its tensors, by name. seed: of the stage; all that the server draws follows from it.

    plans: of clients that train under privacy by record. by_client: the mechanism under privacy by client.
    draw: whom a round asks, where that is not drawn from the seed.
    """

    def __init__(
        self,
        federation: Federation,
        seed: int,
        *,
        plans: Mapping[str, PrivacyPlan] | None = None,
        by_client: ByClient | None = None,
        draw: Callable[[int], list[str]] | None = None,
        tells: bool = True,
    ) -> None:
        self.federation = federation
        self.config = federation.config.federated
        self.strategy = federation.strategy
        self.seed = seed
        self.state = federation.exchange.take()
        self.personal = federation.exchange.take_personal()
        """The parts of the model that stay with clients, as they are before any training."""
        self.optimizers: Tensors = {}
        """The mean of the clients' optimizers, under federated.optimizer_state=average."""
        self.plans = plans or {}
        self.by_client = by_client
        self.tells = tells
        self._draw = draw or self._drawn

    # --- a round ---------------------------------------------------------------------------------------------------

    def round(self, engine: Engine, number: int) -> RoundTold:
        """Takes one round; the state is the new one, or as it was where too few have replied.

        Raises TooFewReplies.
        """
        attempts = RETRIES if self.config.on_too_few == "retry" else 0
        told = self._try(engine, number)
        while not told.is_kept and attempts:
            logger.warning("round %d is tried again", number)
            attempts -= 1
            again = self._try(engine, number)
            up, down = told.bytes_up + again.bytes_up, told.bytes_down + again.bytes_down
            told = RoundTold(again.updates, again.failures, up, down, again.is_kept, again.lora_error)
        if not told.is_kept and self.config.on_too_few != "skip":
            reasons = "; ".join(sorted({f"{client}: {reason}" for client, reason in told.failures.items()})[:3])
            raise TooFewReplies(
                f"round {number}: {len(told.updates)} of the {self.config.min_clients} replies that "
                f"federated.min_clients asks for ({reasons}); the model of round {number - 1} is kept: give the same "
                "command again, or federated.on_too_few=skip"
            )
        return told

    def _try(self, engine: Engine, number: int) -> RoundTold:
        asked = self._draw(number)
        secure = self._secured(number, asked)
        sent: list[int] = []
        tasks = [self._task(client, number, TRAIN, secure, sent.append) for client in asked]
        inbox = self._inbox(number, asked)
        before = copy.deepcopy(self.state_dict())
        try:
            state = self._aggregated(number, inbox.read(engine.run_round(tasks)), secure)
        except (NoUpdates, TooFewSurvivors) as reason:
            logger.warning("round %d: %s", number, reason)
            state = None
        enough = len(inbox.updates) >= self.config.min_clients or self.by_client is not None
        is_kept = state is not None and enough
        if is_kept:
            assert state is not None
            self.state = state
        else:
            self.load_state_dict(before)
        error = self.federation.exchange.error
        return RoundTold(tuple(inbox.updates), inbox.failures, inbox.bytes_up, sum(sent), is_kept, error)

    def _aggregated(self, number: int, updates: Iterator[Update], secure: Secured | None) -> Tensors:
        self.federation.exchange.round = number
        average: Average = averaging.weighted
        if self.by_client is not None:
            self.by_client.round, self.by_client.secure = number, secure
            average = self.by_client
        elif secure is not None:
            average = partial(averaging.secured, secure=secure)

        def merge(updates: Iterable[Update]) -> Tensors:
            return self.federation.exchange.merge(self.state, updates, average)

        optimizers = Mean()
        state = self.strategy.aggregate(self.state, self._averaging(optimizers, updates), merge)
        if self.config.optimizer_state == "average":
            self.optimizers = optimizers.result()
        return state

    def _averaging(self, optimizers: Mean, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, whose optimizers are averaged on the way where federated.optimizer_state says so."""
        for update in updates:
            if self.config.optimizer_state == "average":
                optimizers.add(of_optimizer(update.extra), update.weight)
            yield update

    def _inbox(self, number: int, asked: list[str]) -> Inbox:
        exchange, limit = self.federation.exchange, self.config.max_update_mb * MEGABYTE
        return Inbox(
            number,
            tuple(asked),
            like=lambda client: exchange.like(client, self.state),
            received=lambda client: exchange.share_of(client, self.state),
            weight=self._weight,
            wire=self.config.wire,
            is_masked=self.config.secure_aggregation,
            max_bytes=int(limit),
        )

    # --- what clients are sent -------------------------------------------------------------------------------------

    def personalising(self, client: str) -> Task:
        """The message after the last round."""
        return self._task(client, self.config.rounds + 1, PERSONALISE, None, lambda num_bytes: None)

    def _task(self, client: str, number: int, work: str, secure: Secured | None, sent: Callable[[int], object]) -> Task:
        """sent: told the bytes of the message when it goes."""

        def pack() -> bytes:
            body = self._packed(client, number, work, secure)
            sent(len(body))
            return body

        return Task(client, number, pack)

    def _packed(self, client: str, number: int, work: str, secure: Secured | None) -> bytes:
        """The model as `client` gets it, and what it has to know."""
        tensors = self.federation.exchange.share_of(client, self.state)
        packed = tensors if self.config.wire == "fp32" else wire.compress(tensors, "fp16")
        steps = self.federation.steps_of_round(client)
        meta: dict[str, Any] = {
            "work": work,
            "round": number,
            "client": client,
            "seed": keyed_random.key_bits("client", self.seed, number, client) >> 65,
            "rate": self._rate(number),
            "tells": self.tells,
            "first_step": (number - 1) * steps,
        }
        if client in self.plans:
            plan = asdict(self.plans[client])
            meta["plan"] = plan | {"spent": [], "warnings": []}
        if secure is not None:
            meta["secure"] = secure.for_client(self._weight_of(client))
        return wire.pack(packed | self.strategy.sent() | self.optimizers, meta)

    def _secured(self, number: int, asked: list[str]) -> Secured | None:
        if not self.config.secure_aggregation or not asked:
            return None
        seed = keyed_random.key_bits("secure aggregation", self.seed, number) >> 65
        bound = None if self.by_client is None else self.by_client.plan.clipping_norm
        largest = 1.0 if self.by_client else max(self._weight_of(client) for client in self.federation.clients)
        return Secured.of(self.config, asked, seed, largest=largest, clipping_norm=bound)

    def _rate(self, number: int) -> float:
        """Factor of the learning rate in a round, 1 in the first."""
        if self.config.schedule == "constant" or number > self.config.rounds:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (number - 1) / self.config.rounds))

    # --- clients ---------------------------------------------------------------------------------------------------

    def _drawn(self, number: int) -> list[str]:
        config = self.config
        return sampled(self.federation.clients, config.fraction, number - 1, self.seed, config.sampling)

    def _weight(self, num_examples: int) -> float:
        if self.by_client is None:
            return client_weight(self.config.weights, num_examples, self.config.max_weight)
        if self.config.weights == "clipped":  # at most 1, so that the clipping norm bounds a client's share
            return min(num_examples, self.config.max_weight) / self.config.max_weight
        return 1.0

    def _weight_of(self, client: str) -> float:
        return self._weight(len(self.federation.data[client]))

    # --- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What rounds change besides `state`."""
        return {"strategy": self.strategy.state_dict(), "optimizers": self.optimizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.strategy.load_state_dict(state["strategy"])
        self.optimizers = dict(state["optimizers"])

    def digest(self) -> str:
        """64 hexadecimal digits of the server's tensors."""
        return hashlib.sha256(wire.pack(dict(sorted(self.state.items())), {})).hexdigest()
