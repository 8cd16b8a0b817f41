"""The work of clients, one after the other with one model in memory: bytes in, bytes out, whatever carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privlm.federated import wire
from privlm.federated.aggregate import Tensors, norm
from privlm.federated.client_state import ClientStore, StoreInMemory, StoreOnDisk
from privlm.federated.federation import Federation, Make
from privlm.federated.local import LocalWork
from privlm.federated.secured import masked
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.run_account import client_ledger
from privlm.training.accelerator import make_accelerator
from privlm.training.private import Private

if TYPE_CHECKING:
    from accelerate import Accelerator

TRAIN, PERSONALISE = "train", "personalise"


@dataclass(frozen=True)
class Place:
    """Where clients keep what is theirs; None: in memory, for a federation of one process.

    stage: under whose name the clients' releases enter their ledgers.
    """

    stage: str
    states: Path | None = None
    run: Path | None = None

    def store(self, keep: int) -> ClientStore:
        return StoreInMemory() if self.states is None else StoreOnDisk(self.states, keep)

    def ledger(self, client: str) -> Ledger:
        return Ledger(None if self.run is None else client_ledger(self.run, client))


class Worker:
    """See the module."""

    def __init__(self, federation: Federation, place: Place, accelerator: Accelerator | None = None) -> None:
        self.federation = federation
        self.place = place
        self.accelerator = accelerator or make_accelerator(federation.config.trainer)
        self.store = place.store(federation.config.trainer.keep_checkpoints)
        self.ledgers: dict[str, Ledger] = {}
        federation.loaded.model.to(self.accelerator.device)

    @classmethod
    def of(cls, make: Make, place: Place) -> Worker:
        """In another process than the server's."""
        return cls(make(), place)

    def answer(self, body: bytes) -> bytes:
        """Does what a message asks for and packs the reply. Raises PrivLMError where the client cannot."""
        received, meta = wire.unpack(body)
        local = self.local(meta, self._expanded(received))
        if meta["work"] == PERSONALISE:
            self.federation.strategy.personalise(local)
            self.store.write(local.client, meta["round"], local.personal)
            return wire.pack({}, self._told(local, meta))
        self.federation.strategy.train(local)
        local.keep_parts()
        if local.personal:
            self.store.write(local.client, meta["round"], local.personal)
        return self._reply(local, meta)

    def local(self, meta: Mapping[str, Any], received: Tensors) -> LocalWork:
        """The client that a message is for, before its work."""
        client, plan = meta["client"], meta.get("plan")
        private = None if plan is None else partial(self._private, client, meta["first_step"], PrivacyPlan(**plan))
        return LocalWork(
            self.federation,
            client,
            received=received,
            personal=self.store.read(client, meta["round"]),
            seed=meta["seed"],
            accelerator=self.accelerator,
            rate=meta["rate"],
            private=private,
        )

    def _expanded(self, received: Tensors) -> Tensors:
        """The model travels in 16 bits where updates travel in fewer than 32."""
        kind = "fp32" if self.federation.config.federated.wire == "fp32" else "fp16"
        return wire.expand(received, kind, self.federation.exchange.tensors)

    def close(self) -> None:
        """Lets others write the ledgers of the clients."""
        for ledger in self.ledgers.values():
            ledger.close()
        self.ledgers.clear()

    def _private(self, client: str, first_step: int, plan: PrivacyPlan, steps_taken: int) -> Private:
        if client not in self.ledgers:
            self.ledgers[client] = self.place.ledger(client)
        whole = self.ledgers[client]
        view = whole.of(self.place.stage, client, first_step=first_step + steps_taken)
        return Private(plan, view, log_diagnostics=self.federation.config.privacy.log_private_diagnostics)

    def _reply(self, local: LocalWork, meta: Mapping[str, Any]) -> bytes:
        told, kind = self._told(local, meta), self.federation.config.federated.wire
        if meta.get("secure") is not None:
            return wire.pack(masked(meta["secure"], local.client, local.update()), told)
        if kind == "fp32":
            return wire.pack(local.tensors() | local.sent_beside, told)
        update = local.update()
        packed = wire.compress(update, kind)
        told["wire_error"] = wire.wire_error(update, wire.expand(packed, kind))
        return wire.pack(packed | local.sent_beside, told)

    def _told(self, local: LocalWork, meta: Mapping[str, Any]) -> dict[str, Any]:
        """What stands beside the tensors; under privacy nothing that reads rows, unless diagnostics are asked for."""
        told: dict[str, Any] = {"round": meta["round"], "client": local.client, "steps": local.steps_taken}
        told["num_examples"] = len(local.data)
        told["out_of_budget"] = local.is_out_of_budget
        if meta["tells"]:
            told["metrics"] = local.metrics | {"delta_norm": norm(local.update())}
        return told
