"""Rounds of clients and a server as one stage: fit's twin, from a federation to a priced, saved model.

The price is told before the first round, a finished round is on disk whole, and a run that is killed goes on from there
with the clients' own state of that round.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from privlm import registry, reload_proof
from privlm.errors import PrivLMError
from privlm.federated.client_state import StoreOnDisk
from privlm.federated.engine import Engine, InProcess
from privlm.federated.faults import Faulty, are_wanted
from privlm.federated.federation import Federation, Make
from privlm.federated.messages import Failure, of_model
from privlm.federated.outcome import Federated, FederatedOutcome
from privlm.federated.pool import Pool
from privlm.federated.pricing import Pricing
from privlm.federated.server import RoundTold, Server
from privlm.federated.worker import Place, Worker
from privlm.job import Stage
from privlm.kept_model import load_model, prove, save_model
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy import keyed_random
from privlm.reload_proof import ProofLosses
from privlm.rundir import MODEL
from privlm.signals import Interrupted
from privlm.training.checkpoint import Checkpoint, CheckpointStore
from privlm.training.evaluation import Evaluation

CLIENTS = "clients"
NUM_NAMED = 20
"""Clients of a round that metrics.jsonl tells of one by one; of more only the means."""


def rounds(
    stage: Stage,
    federation: Federation,
    *,
    evaluation: Evaluation | None = None,
    make: Make | None = None,
    engine: Callable[[Worker], Engine] | None = None,
) -> Federated:
    """Takes the rounds of the stage's configuration, and saves the server's model in stage.folder.

    A stage that is done loads the model instead; one that was interrupted goes on from its last round.

    evaluation: of the server's model, every federated.evaluate_every rounds and after the last.
    make: makes the same federation in another process, for federated.engine=pool; where it is not given, by the
        `federation(config)` of the task's run.py.
    engine: makes another than that of federated.engine; the worker is that of this process.

    Raises UsageError for a federation that cannot be, TooFewReplies for a round that nobody could save, and
    NotReproducedError where the saved model is not the trained one.
    """
    with contextlib.ExitStack() as leaving:
        return _Rounds(stage, federation, evaluation, leaving).run(make, engine)


def federation_of(config: dict[str, Any]) -> Federation:
    """The federation of a run's configuration, in whatever process."""
    composed: Any = OmegaConf.create(config)
    OmegaConf.set_readonly(composed, True)
    return registry.entry_of(composed).federation(composed)


class _Rounds:
    """One call of `rounds`."""

    def __init__(
        self, stage: Stage, federation: Federation, evaluation: Evaluation | None, leaving: contextlib.ExitStack
    ) -> None:
        self.stage = stage
        self.job = stage.job
        self.config = federation.config.federated
        self.federation = federation
        self.evaluation = evaluation
        self._leaving = leaving
        self.place = self._place()
        self.worker = Worker(federation, self.place, stage.job.accelerator)
        self.pricing = Pricing.of(stage, federation, self.worker)
        self.server = Server(federation, stage.seed(), **self.pricing.for_server())
        self.outcome = FederatedOutcome("done", 0, "")

    def run(self, make: Make | None, engine_of: Callable[[Worker], Engine] | None) -> Federated:
        stage, folder = self.stage, self.stage.folder / MODEL if self.stage.is_kept else None
        if not stage.needed:
            assert folder is not None
            return self._loaded(folder)
        self.pricing.tell(0)
        engine = engine_of(self.worker) if engine_of else self._engine(make)
        self._leaving.callback(engine.close)
        self._take_all(Faulty(engine, self.config.fault, stage.seed()) if are_wanted(self.config.fault) else engine)
        self._personalise(engine)
        engine.close()
        stage.ended(self.outcome.status)
        self.pricing.tell(self.outcome.rounds)
        federated = self._federated()
        federated.put_servers()
        if folder is not None:
            self._keep(folder, federated)
        return federated

    # --- the rounds ------------------------------------------------------------------------------------------------

    def _take_all(self, engine: Engine) -> None:
        store = self._checkpoints()
        done = self._resume(store)
        if not done:
            self._hand_out_parts()
        with self.job.progress(self.stage.name, self.config.rounds, start=done) as show:
            for number in range(done + 1, self.config.rounds + 1):
                if not self.pricing.allow(number):
                    self.outcome = replace(self.outcome, status="budget_reached")
                    break
                started = time.monotonic()
                told = self.server.round(engine, number)
                self.outcome = self.outcome.after(told, self.federation.config.trainer.batch_size)
                self.outcome = replace(self.outcome, digest=self.server.digest())
                self._log(number, told, time.monotonic() - started)
                self._evaluate(number)
                self._save(store, number)
                show(number)
                if signum := self.job.stop.signum:
                    raise Interrupted(signum)

    def _hand_out_parts(self) -> None:
        """Before the first round each client has the parts that will be its own as the run's model has them: they may
        come from a warm start, and another client has trained with the model in memory before.
        """
        if self.server.personal:
            for client in self.federation.clients:
                self.worker.store.write(client, 0, self.server.personal)

    def _log(self, number: int, told: RoundTold, seconds: float) -> None:
        if self.pricing.hides_sampling:
            return
        counts: dict[str, Any] = {"replies": len(told.updates), "failures": len(told.failures)}
        size: dict[str, Any] = {"bytes_up": told.bytes_up, "bytes_down": told.bytes_down}
        self.stage.log(number, "run", None, **counts, **size, seconds=seconds)
        if told.lora_error is not None:
            self.stage.log(number, "train", lora_error=told.lora_error)
        if len(told.updates) <= NUM_NAMED:
            for update in told.updates:
                self.stage.log(number, "train", {"client": update.client}, **update.metrics)
        names = sorted({name for update in told.updates for name in update.metrics})
        errors = [update.meta["wire_error"] for update in told.updates if update.meta.get("wire_error") is not None]
        means = {
            name: _mean([update.metrics[name] for update in told.updates if name in update.metrics]) for name in names
        }
        if errors:
            means["wire_error"] = _mean(errors)
        if means:
            self.stage.log(number, "train", None, **means)

    def _evaluate(self, number: int) -> None:
        every, is_last = self.config.evaluate_every, number == self.config.rounds
        due = is_last or (every > 0 and number % every == 0)
        if due and (spent := self.pricing.spent(number)) is not None:
            self.stage.log(number, "train", epsilon=spent)
        if self.evaluation is None or not due:
            return
        exchange, model = self.federation.exchange, self.federation.loaded.model
        exchange.put(self.server.personal | self.server.state)
        device = self.job.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), evaluation_mode(model):
            torch.manual_seed(keyed_random.key_bits("evaluation of a round", self.stage.seed(), number) >> 65)
            measured = self.evaluation.function(model)
        self.stage.log(number, self.evaluation.split, None, **{name: float(value) for name, value in measured.items()})

    def _personalise(self, engine: Engine) -> None:
        """Every client makes the model that it uses; those of an earlier try are kept."""
        federation, after = self.federation, self.config.rounds + 1
        if not any(map(federation.steps_of_personalising, federation.clients)):
            return
        assert federation.strategy.is_personal_model
        open_clients = [name for name in federation.clients if not self.worker.store.has(name, after)]
        tasks = [self.server.personalising(client) for client in open_clients]
        total = len(federation.clients)
        start = total - len(tasks)
        with self.job.progress(f"{self.stage.name}: own models", total, start=start, interruptible=True) as show:
            for number, reply in enumerate(engine.run_round(tasks), start=start + 1):
                if isinstance(reply, Failure):
                    raise PrivLMError(f"client {reply.client} could not make its own model: {reply.reason}")
                show(number)

    # --- what is kept ----------------------------------------------------------------------------------------------

    def _checkpoints(self) -> CheckpointStore | None:
        if not self.stage.is_kept:
            return None
        keep = self.federation.config.trainer.keep_checkpoints
        return CheckpointStore(self.stage.checkpoints, keep=keep, rewind=self.stage.rewind)

    def _save(self, store: CheckpointStore | None, number: int) -> None:
        if store is None:
            return
        progress = {"outcome": asdict(self.outcome), **self.pricing.heads()}
        rest = self.server.state_dict()
        store.save(Checkpoint(number, self.server.state, optimizer={}, objective=rest, progress=progress))

    def _resume(self, store: CheckpointStore | None) -> int:
        """Takes up the last finished round; its number, 0 without one."""
        checkpoint = store.load() if store else None
        if store is None or checkpoint is None:
            if store is not None:
                store.rewind(0)
            return 0
        self.pricing.require(checkpoint.progress, f"the checkpoint of round {checkpoint.step}")
        store.rewind(checkpoint.step)
        self.server.state = dict(checkpoint.tensors)
        self.server.load_state_dict(checkpoint.objective)
        self.outcome = FederatedOutcome(**checkpoint.progress["outcome"])
        self.job.say(f"{self.stage.name}: goes on after round {checkpoint.step}")
        return checkpoint.step

    def _keep(self, folder: Path, federated: Federated) -> None:
        loaded, stage = self.federation.exchange.kept(self.federation.loaded), self.stage
        save_model(loaded, folder, outcome=asdict(federated.outcome), price=self.pricing.price())
        client = self._drawn_client()
        trainer = self.federation.config.trainer
        losses = ProofLosses(
            self.federation.objective,
            self.federation.data[client],
            stage.seed(),
            trainer.micro_batch_size,
            self.job.accelerator.autocast,
        )
        self.job.say(f"{stage.name}: {prove(loaded, folder, losses)}")
        if self.federation.strategy.is_personal_model:
            self._prove_client(client, folder, federated, losses)
        kept = sorted(path for path in folder.rglob("*") if path.is_file())
        if isinstance(self.worker.store, StoreOnDisk):
            kept += self.worker.store.newest(self.federation.clients)
        stage.output(*kept)
        self.job.say(f"{stage.name}: final model {self.outcome.digest[:16]}, in {folder}")

    def _prove_client(self, client: str, folder: Path, federated: Federated, losses: ProofLosses) -> None:
        """The model of one client is what its files say, on an untrained model that was built anew."""
        again = self.federation.exchange.kept(self.federation.loaded).fresh()
        again.model.to(self.job.accelerator.device)
        load_model(again, folder)
        own = of_model(self.worker.store.read(client, self.config.rounds + 2))
        self.federation.exchange_of(again.model).put(own, client)
        with federated.model_of(client) as model:
            reload_proof.compare_states(model, again.model)
            reload_proof.compare_losses(model, again.model, losses)

    def _drawn_client(self) -> str:
        clients = self.federation.clients
        return clients[keyed_random.key_bits("client of the reload proof", self.stage.seed()) % len(clients)]

    def _loaded(self, folder: Path) -> Federated:
        kept = load_model(self.federation.exchange.kept(self.federation.loaded), folder)
        self.server.state = self.federation.exchange.take()
        self.outcome = FederatedOutcome(**kept["outcome"])
        self.pricing.tell_again(kept, folder, self.outcome.rounds)
        return self._federated()

    def _federated(self) -> Federated:
        outcome = self.outcome.without_sampling() if self.pricing.hides_sampling else self.outcome
        return Federated(self.federation, outcome, self.server, self.worker.store, self.config.rounds)

    # --- who does the work -----------------------------------------------------------------------------------------

    def _place(self) -> Place:
        if self.stage.is_kept:
            return Place(self.stage.name, self.stage.folder / CLIENTS, self.job.directory)
        if self.config.engine == "inprocess":
            return Place(self.stage.name)
        temporary = Path(self._leaving.enter_context(tempfile.TemporaryDirectory()))
        return Place(self.stage.name, temporary, temporary)

    def _engine(self, make: Make | None) -> Engine:
        if self.config.engine == "inprocess":
            return InProcess(self.worker)
        if self.config.engine == "pool":
            plain: Any = OmegaConf.to_container(self.stage.config)
            make = make or partial(federation_of, plain)
            return Pool(make, self.place, workers=self.config.workers, timeout=self.config.timeout_s)
        from privlm.federated.flower.engine import Flower

        return Flower.of_this_process(self.federation, self.place, self.job.note)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def client_tensors(states: Path, client: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What a client of a finished stage keeps of the model, by name. states: the folder `clients` of the stage."""
    kept = StoreOnDisk(states).read(client, 2**31)
    yield from of_model(kept).items()
