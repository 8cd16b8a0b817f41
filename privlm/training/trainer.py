"""The training loop of every task: logical batches cut into micro-batches, with or without privacy.

Everything random in a step (batch, dropout, per-example streams, reproducible noise) is a function of (seed, step), so
a run resumed from a checkpoint takes exactly the steps that the uninterrupted run would have taken.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn

from privlm.errors import PrivLMError, UsageError
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy.ledger import Ledger
from privlm.privacy.run_account import head_of, recorded_head
from privlm.signals import Interrupted
from privlm.training.accelerator import deterministic, make_accelerator
from privlm.training.batches import Batches, ShuffledBatches, TrainingData
from privlm.training.canaries import MODULE, Canaries, Losses
from privlm.training.checkpoint import Checkpoint, CheckpointStore
from privlm.training.evaluation import Best, Evaluation
from privlm.training.gradients import Examples, Gradient
from privlm.training.modes import TrainingModes
from privlm.training.objective import Objective
from privlm.training.private import Private
from privlm.training.processes import agree_on_signal, broadcast
from privlm.training.state import put, trained_tensors
from privlm.training.step import Stepper

logger = logging.getLogger("privlm")

Log = Callable[..., None]
"""log(step, split, **values): where metrics go."""


@dataclass(frozen=True)
class Monitor:
    """What a training run tells, and who may stop it.

    log: where metrics go. Of split `train` are loss and its parts, learning_rate, gradient_norm (before clipping) and
        epsilon; of split `run` examples_per_second and peak_memory (bytes), which are of this run alone.
    save: where checkpoints go. stop: returns the number of a signal that asks to stop, or 0.
    tick: told each finished step.
    """

    log: Log = lambda step, split, **values: None
    save: CheckpointStore | None = None
    stop: Callable[[], int] = lambda: 0
    tick: Callable[[int], None] = lambda step: None


@dataclass(frozen=True)
class Outcome:
    """How training ended. status: done, budget_reached or early_stop; steps: taken in all, resumed ones included.

    best_step, best: with trainer.restore_best the step whose weights the model has, and its evaluation.
    """

    status: str
    steps: int
    best_step: int | None = None
    best: Mapping[str, float] | None = None


class Trainer:
    """Trains the parameters of `model` that require gradients.

        trainer = Trainer(model, objective, data, config, seed=0)
        outcome = trainer.run(steps=100)

    config: a TrainerConfig (privlm.training.schema) or any object with its fields.
    seed: of the run, or of a stage of it: everything random follows from it.
    accelerator: device, precision and processes; one is made where none is handed in.
    private: differential privacy, or None.
    canaries: planted in data and losses for an audit, or None.
    batches: which examples a step sees, shuffled epochs where None; no choice under privacy.

    Raises UsageError for what privacy or the kind of weights rules out, and for a config that asks for an evaluation
    that there is not.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        data: TrainingData,
        config: Any,
        *,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        private: Private | None = None,
        canaries: Canaries | None = None,
        evaluation: Evaluation | None = None,
        batches: Batches | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(f"{type(objective).__name__} is no Objective: derive it from privlm.training.objective's")
        self.accelerator = accelerator or make_accelerator(config)
        if private is not None:
            _refuse_under_privacy(objective, batches, self.accelerator)
        self.model = model.to(self.accelerator.device)
        self.objective = objective
        self.config = config
        self.seed = seed
        self.private = private
        self.canaries = canaries
        self.evaluation = evaluation
        self.monitor = monitor or Monitor()
        self.best = Best.of(evaluation, config)
        losses: Losses = objective.losses
        if canaries is not None:
            data, losses = canaries.plant(self.model, data, losses)
        self.examples = Examples(
            self.model,
            data,
            losses,
            self.accelerator,
            seed,
            config.micro_batch_size,
            secret_dropout=private is not None and private.plan.rng == "secure",
        )
        batches = batches or ShuffledBatches(len(data), config.batch_size, seed)
        self.stepper = Stepper(objective, self.examples, batches, config, private, canaries)
        self._snapshot: Checkpoint | None = None  # of the best step, where no store holds it

    def run(self, steps: int) -> Outcome:
        """Takes the steps up to `steps`, from the newest checkpoint if there is one.

        Raises Interrupted after a checkpoint when `stop` asks for it, PrivLMError when the loss is not finite.
        """
        start = self._resume()
        if self.canaries is not None and start == 0:
            self.canaries.start()
        with (
            deterministic(self.config.deterministic),
            TrainingModes(self.model) as modes,
            self.stepper.gradient() as gradient,
        ):
            status, step = self._train(start, steps, modes, gradient)
        best = self._restore_best()
        if self.canaries is not None:
            self.canaries.finish(self.model)
        return Outcome(status, step, **best)

    def _train(self, start: int, steps: int, modes: TrainingModes, gradient: Gradient) -> tuple[str, int]:
        status, step, saved = "done", start, start
        while step < steps:
            if self._out_of_patience():
                status = "early_stop"
                break
            if not self._affordable():
                status = "budget_reached"
                break
            step += 1
            modes.train()
            rows = self.stepper.take(gradient, step, steps, is_read=_due(step, self.config.log_every) or step == steps)
            self.monitor.tick(step)
            for split, values in rows.items():
                self.monitor.log(step, split, **values)
            improved = self._evaluate(step) if _due(step, self.config.evaluate_every) or step == steps else False
            signum = agree_on_signal(self.accelerator, self.monitor.stop())
            if signum or (improved and self.config.restore_best) or _due(step, self.config.checkpoint_every):
                self._save(step)
                saved = step
            if signum:
                raise Interrupted(signum)
        if saved != step:
            self._save(step)
        return status, step

    # --- between steps --------------------------------------------------------------------------------------------

    def _evaluate(self, step: int) -> bool:
        """Measures and logs; whether this step is the best so far."""
        improved = False
        if self.evaluation is not None:
            self.stepper.refuse_bad_loss()
            with evaluation_mode(self.model), self.stepper.keyed_random("evaluation", step):
                measured = {name: float(value) for name, value in self.evaluation.function(self.model).items()}
            measured = broadcast(measured)  # the processes must agree on the best step
            self.monitor.log(step, self.evaluation.split, **measured)
            improved = self.best.see(step, measured)
        if self.private and self.accelerator.is_main_process:
            self.monitor.log(step, "train", epsilon=self.private.spent_through(step))
        return improved

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stop_patience
        return patience is not None and self.best.stale >= patience

    def _affordable(self) -> bool:
        """Whether one more release keeps the certified epsilon within the budget; the main process decides for all."""
        if self.private is None:
            return True
        return bool(broadcast(self.accelerator.is_main_process and self.private.allows_one_more()))

    def _save(self, step: int) -> None:
        self.stepper.refuse_bad_loss()
        if self.monitor.save is None:
            if self.config.restore_best and self.best.step == step:
                self._snapshot = copy.deepcopy(self._checkpoint(step, optimizer={}))
            return
        if self.accelerator.is_main_process:
            self.monitor.save.save(self._checkpoint(step, optimizer=self.stepper.optimizer.state_dict()))
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, step: int, optimizer: dict[str, Any]) -> Checkpoint:
        progress = {
            "evaluations": self.best.state_dict(),
            "processes": self.accelerator.num_processes,
            "scaler": self.stepper.scaler.state_dict(),
        }
        if self.private and self.accelerator.is_main_process:
            progress |= head_of(self.private.ledger)
        return Checkpoint(
            step=step,
            tensors=trained_tensors(self.model, self.stepper.parameters),
            optimizer=optimizer,
            objective=self.objective.state_dict(),
            progress=progress,
            best_step=self.best.step if self.config.restore_best else None,
        )

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns its step, 0 without one."""
        store = self.monitor.save
        if store is None:
            return 0
        checkpoint = store.load(self.accelerator.device)
        if checkpoint is None:
            store.rewind(0)
            return 0
        self._refuse_checkpoint(checkpoint, store)
        store.rewind(checkpoint.step)
        put(checkpoint.tensors, into=trained_tensors(self.model, self.stepper.parameters))
        self.stepper.optimizer.load_state_dict(checkpoint.optimizer)
        self.objective.load_state_dict(checkpoint.objective)
        self.stepper.scaler.load_state_dict(checkpoint.progress["scaler"])
        self.best.load_state_dict(checkpoint.progress["evaluations"])
        logger.info("resumed from step %d", checkpoint.step)
        return checkpoint.step

    def _refuse_checkpoint(self, checkpoint: Checkpoint, store: CheckpointStore) -> None:
        processes = checkpoint.progress["processes"]
        if processes != self.accelerator.num_processes:
            raise PrivLMError(
                f"the checkpoint in {store.directory} was made by {processes} process(es), not "
                f"{self.accelerator.num_processes}: go on with the same number"
            )
        if self.private and self.accelerator.is_main_process:  # the others have no ledger
            self._refuse_ledger(self.private.ledger, checkpoint, f"the checkpoint of step {checkpoint.step}")
        if checkpoint.best_step is not None:
            store.verify(checkpoint.best_step)  # now rather than after the last step

    def _refuse_ledger(self, ledger: Ledger, checkpoint: Checkpoint, name: str) -> None:
        head = recorded_head(checkpoint.progress, ledger)
        if head is None:
            raise UsageError(
                f"{name} is of an older version, which names no head of the privacy ledger: the privacy spent cannot "
                "be checked, so the run cannot go on; start again with --force"
            )
        ledger.require(head, name)

    def _restore_best(self) -> dict[str, Any]:
        """Gives model and objective what they had at the best step. Canaries have seen all steps and keep that."""
        if not self.config.restore_best:
            return {}
        if self.best.step is None:
            logger.warning("trainer.restore_best: no evaluation gave a number, so that the last weights stay")
            return {}
        store = self.monitor.save
        checkpoint = self._snapshot if store is None else store.read(self.best.step, self.accelerator.device)
        assert checkpoint is not None
        tensors = trained_tensors(self.model, self.stepper.parameters)
        canaries = {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(f"{MODULE}.")}
        put(checkpoint.tensors | canaries, into=tensors)
        self.objective.load_state_dict(checkpoint.objective)
        return {"best_step": self.best.step, "best": self.best.values}


def _refuse_under_privacy(objective: Objective, batches: Batches | None, accelerator: Accelerator) -> None:
    if objective.private_state:
        raise UsageError(
            f"privacy: {', '.join(objective.private_state)} of {type(objective).__name__} comes from private data "
            "outside the ledger; use an objective without it, or privacy=none"
        )
    if batches is not None:
        raise UsageError("privacy draws every batch by Poisson sampling: give the Trainer no batches, or privacy=none")
    if accelerator.mixed_precision == "fp16":
        raise UsageError(
            "trainer.precision=fp16 under privacy: losses cannot be scaled before their gradients are clipped, so that "
            "small gradients would vanish; use trainer.precision=bf16 or fp32"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
