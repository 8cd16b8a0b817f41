"""What the rounds of a federation cost in privacy: planned before the first, accounted for in each, told to the user.

Under privacy by record (dp_sgd) every client trains with noise of its own, enters it into a ledger of its own, and the
server's average costs nothing more. Under privacy by client (dp_fedavg) the server adds noise to the sum of clipped
updates, and the run has one ledger.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from privlm.federated.averaging import ByClient, refuse_buffers
from privlm.federated.federation import Federation
from privlm.federated.sampling import sampled
from privlm.federated.worker import Worker
from privlm.job import Stage
from privlm.privacy.client_plans import ClientPlans, make_client_plans
from privlm.privacy.ledger import Head, Ledger
from privlm.privacy.noise import ReproducibleNoise, SecureNoise
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.privacy.run_account import KEY, KEYS, as_json
from privlm.privacy.sampling import PoissonSampler
from privlm.privacy.schema import is_private, is_private_by_client
from privlm.training.batches import TrainingData
from privlm.training.private import Private


class Pricing:
    """Of a federation without privacy: nothing."""

    hides_sampling = False
    """Whether whom a round asks is a secret that the guarantee relies on."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @classmethod
    def of(cls, stage: Stage, federation: Federation, worker: Worker) -> Pricing:
        """By the mechanism of federation.config.privacy. Raises UsageError for a budget that is out of reach."""
        if not is_private(federation.config):
            return cls(stage)
        if is_private_by_client(federation.config):
            return PricedByClient(stage, federation)
        return PricedByRecord(stage, federation, worker)

    def for_server(self) -> dict[str, Any]:
        """Arguments of the server."""
        return {}

    def allow(self, number: int) -> bool:
        """Whether the round is within the budget."""
        return True

    def spent(self, number: int) -> float | None:
        """Certified epsilon up to a round; None where there is none to tell."""
        return None

    def heads(self) -> dict[str, Any]:
        """What a checkpoint keeps of the ledgers, which are whole by then."""
        return {}

    def require(self, progress: Mapping[str, Any], recorded_by: str) -> None:
        """Raises UsageError where the ledgers are not those that a checkpoint was made with."""

    def tell(self, number: int) -> None:
        """Writes the price into privacy.json, after so many rounds."""
        self.stage.job.trains_without_privacy(self.stage.name) if number == 0 else None

    def tell_again(self, kept: Mapping[str, Any], folder: Path, number: int) -> None:
        """That of a stage that an earlier try has finished. Raises UsageError where the ledgers are others."""
        self.tell(0)

    def price(self) -> dict[str, Any]:
        """What training.json says."""
        return {"plan": None}


class PricedByClient(Pricing):
    """One unit is a client: all its rows, in all rounds."""

    def __init__(self, stage: Stage, federation: Federation) -> None:
        super().__init__(stage)
        config, clients = federation.config.federated, federation.clients
        privacy = federation.config.privacy
        names = [name for name, value in federation.loaded.model.named_parameters() if value.requires_grad]
        refuse_buffers(federation.exchange.take(), names)
        self.clients = clients
        self.ledger: Ledger = stage.ledger()
        self.plan: PrivacyPlan = make_plan(
            privacy,
            dataset_size=len(clients),
            batch_size=config.fraction * len(clients),
            steps=config.rounds,
            compare=False,
            spent=self.ledger.segments(through_step=0),
            unit="client",
            mechanism="dp_fedavg",
        )
        seed = stage.seed({"purpose": "privacy by client"}) if self.plan.rng == "reproducible" else None
        noise = SecureNoise() if seed is None else ReproducibleNoise(seed)
        self.mechanism = ByClient(self.plan, noise, self.ledger, tuple(names))
        self.sampler = PoissonSampler(len(clients), self.plan.sampling_rate, seed)
        self.tells_diagnostics = privacy.log_private_diagnostics
        self.hides_sampling = not self.tells_diagnostics
        self.private = Private(self.plan, self.ledger)

    def for_server(self) -> dict[str, Any]:
        return {"by_client": self.mechanism, "draw": self._draw, "tells": self.tells_diagnostics}

    def allow(self, number: int) -> bool:
        return self.private.allows_one_more()

    def spent(self, number: int) -> float | None:
        return self.private.spent_through(number)

    def heads(self) -> dict[str, Any]:
        return {KEY: as_json(self.ledger.head)}

    def require(self, progress: Mapping[str, Any], recorded_by: str) -> None:
        self.ledger.require(Head.from_json(progress[KEY]), recorded_by)

    def tell(self, number: int) -> None:
        if number == 0:
            _say_plan(self.stage, self.plan)
        self.stage.job.price.stages[self.stage.name] = self.plan, number
        self.stage.job.tell_price()

    def tell_again(self, kept: Mapping[str, Any], folder: Path, number: int) -> None:
        self.ledger.require(Head.from_json(kept[KEY]), f"stage {self.stage.name}")
        self.tell(number)

    def price(self) -> dict[str, Any]:
        return {"plan": self.plan.to_dict(), **self.heads()}

    def _draw(self, number: int) -> list[str]:
        return [self.clients[place] for place in self.sampler.indices(number)]


class PricedByRecord(Pricing):
    """One unit is a record; it belongs to one client where the digests of all records say so."""

    def __init__(self, stage: Stage, federation: Federation, worker: Worker) -> None:
        super().__init__(stage)
        config = federation.config
        clients = federation.clients
        self.tells_diagnostics = config.privacy.log_private_diagnostics
        self.are_disjoint = are_disjoint(federation.data)
        steps = planned_steps(federation, stage.seed())
        taking_part = [client for client in clients if steps[client]]
        self.plans = make_client_plans(
            config.privacy,
            sizes={client: len(federation.data[client]) for client in taking_part},
            batch_size=config.trainer.batch_size,
            steps={client: steps[client] for client in taking_part},
            are_disjoint=self.are_disjoint,
        )
        self.ledgers = {client: worker.place.ledger(client).of(stage.name, client) for client in taking_part}
        if worker.place.run is None:  # in memory the server sees the worker's own
            worker.ledgers.update(self.ledgers)

    def for_server(self) -> dict[str, Any]:
        return {"plans": self.plans, "tells": self.tells_diagnostics}

    def heads(self) -> dict[str, Any]:
        return {KEYS: {client: as_json(ledger.head) for client, ledger in self._current().items()}}

    def require(self, progress: Mapping[str, Any], recorded_by: str) -> None:
        for client, head in progress[KEYS].items():
            self.ledgers[client].require(Head.from_json(head), recorded_by)

    def tell(self, number: int) -> None:
        if number == 0:
            self._say()
        self._current()
        self.stage.job.price.stages[self.stage.name] = ClientPlans(self.plans, self.ledgers, self.are_disjoint)
        self.stage.job.tell_price()

    def tell_again(self, kept: Mapping[str, Any], folder: Path, number: int) -> None:
        self.require(kept, f"stage {self.stage.name}")
        self.tell(number)

    def price(self) -> dict[str, Any]:
        largest = max(self.plans.values(), key=lambda plan: plan.epsilon)
        return {"plan": largest.to_dict(), **self.heads()}

    def _current(self) -> Mapping[str, Ledger]:
        for ledger in self.ledgers.values():
            ledger.refresh()
        return self.ledgers

    def _say(self) -> None:
        largest = max(self.plans.values(), key=lambda plan: plan.epsilon)
        noises = sorted({plan.noise_multiplier for plan in self.plans.values()})
        told = f"{noises[0]:.4f}" if len(noises) == 1 else f"{noises[0]:.4f} to {noises[-1]:.4f}"
        whose = "the largest of them" if self.are_disjoint else "which may share records, of each alone"
        self.stage.job.say(
            f"planned: {len(self.plans)} clients, noise multiplier {told}; {whose}: {largest.describe()}"
        )
        for warning in sorted({warning for plan in self.plans.values() for warning in plan.warnings}):
            self.stage.job.say(f"warning: {warning}")


def planned_steps(federation: Federation, seed: int) -> Counter[str]:
    """Private steps of each client in all rounds that it will be asked in, and for its own model.

    Whom a round asks follows from the seed, and reads no row.
    """
    config, steps = federation.config.federated, Counter[str]()
    for number in range(1, config.rounds + 1):
        for client in sampled(federation.clients, config.fraction, number - 1, seed, config.sampling):
            steps[client] += federation.steps_of_round(client)
    for client in federation.clients:
        steps[client] += federation.steps_of_personalising(client)
    return steps


def are_disjoint(data: Mapping[str, TrainingData]) -> bool:
    """Whether no record, as the trainer reads it, is in the data of two clients."""
    owner: dict[bytes, str] = {}
    for client, rows in data.items():
        for row in range(len(rows)):
            batch = rows.batch(np.array([row]))
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(name.encode() + batch[name].cpu().numpy().tobytes())
            if owner.setdefault(digest.digest(), client) != client:
                return False
    return True


def _say_plan(stage: Stage, plan: PrivacyPlan) -> None:
    stage.job.say(f"planned: noise multiplier {plan.noise_multiplier:.4f}: {plan.describe()}")
    for warning in plan.warnings:
        stage.job.say(f"warning: {warning}")
