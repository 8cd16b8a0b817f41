"""The training loop of every task: logical batches cut into micro-batches, with or without privacy.

Everything random in a step (batch, dropout, per-example streams, reproducible noise) is a function of (seed, step), so
a run resumed from a checkpoint takes exactly the steps that the uninterrupted run would have taken.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from privlm.errors import PrivLMError, UsageError
from privlm.privacy import accounting, keyed_random
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import ReproducibleNoise, SecureNoise
from privlm.privacy.plan import PrivacyPlan
from privlm.privacy.release import World
from privlm.privacy.rgp import Reparametrization
from privlm.privacy.sampling import PoissonSampler, micro_batches, share
from privlm.privacy.watch import SamplingCheck
from privlm.signals import Interrupted
from privlm.training.accelerator import make_accelerator
from privlm.training.batches import Indices, ShuffledBatches, TrainingData
from privlm.training.canaries import Canaries, Losses
from privlm.training.checkpoint import CheckpointStore
from privlm.training.objective import ExampleRandom, HasDirection, HasPenalty, Objective, PerExample
from privlm.training.schedule import learning_rate_factor

logger = logging.getLogger("privlm")

Log = Callable[..., None]
"""log(step, split, **values): where metrics go."""


@dataclass(frozen=True)
class Private:
    """Training under differential privacy: the plan of the mechanism, and the ledger that every release enters.

    log_diagnostics: also log training loss and clipping, which read private data and are covered by no epsilon.
    """

    plan: PrivacyPlan
    ledger: Ledger
    log_diagnostics: bool = False

    def allows_one_more(self) -> bool:
        """Whether the certified epsilon of all releases so far and one more stays within the budget."""
        plan, spent = self.plan, self.ledger.segments()
        if sum(segment.steps for segment in spent) < plan.steps and all(
            replace(segment, steps=1) == plan.step for segment in spent
        ):
            return True  # a part of the plan, which is within the budget
        return self.ledger.budget_allows(
            plan.step, target_epsilon=plan.budget, delta=plan.delta, adjacency=plan.adjacency
        )

    def spent_through(self, step: int) -> float:
        """Certified epsilon of the releases of steps up to `step` (coarse grid: an upper bound too, and quick)."""
        return accounting.epsilon(
            self.ledger.segments(through_step=step),
            self.plan.delta,
            adjacency=self.plan.adjacency,
            discretization=1e-3,
        ).epsilon


@dataclass(frozen=True)
class Evaluation:
    """What is measured during training: `function(model)` gives name -> value on the data called `split`.

    early_stop_metric: the value that must rise for training to go on; None never stops early.
    """

    split: str
    function: Callable[[nn.Module], Mapping[str, float]]
    early_stop_metric: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended. status: done, budget_reached or early_stop; steps: taken in all, resumed ones included."""

    status: str
    steps: int


class Trainer:
    """Trains the parameters of `model` that require gradients.

        trainer = Trainer(model, objective, data, config, seed=0)
        outcome = trainer.run(steps=100)

    config: a TrainerConfig (privlm.config) or any object with its fields.
    accelerator: device, precision and processes; one is made where none is handed in.
    private: differential privacy, or None.
    canaries: planted in data and losses for an audit, or None.
    log, save: where metrics and checkpoints go.
    stop: returns the number of a signal that asks to stop, or 0.
    tick: told each finished step.

    Raises UsageError for an objective whose penalty or direction carries private data over, under privacy.
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
        log: Log = lambda step, split, **values: None,
        save: CheckpointStore | None = None,
        stop: Callable[[], int] = lambda: 0,
        tick: Callable[[int], None] = lambda step: None,
    ) -> None:
        if private is not None:
            _refuse_private_state(objective)
        self.accelerator = accelerator or make_accelerator(config)
        self.model = model.to(self.accelerator.device)
        self.objective = objective
        self.data = data
        self.losses: Losses = objective.losses
        self.canaries = canaries
        if canaries is not None:
            self.data, self.losses = canaries.plant(self.model, data, objective.losses)
        self.config = config
        self.seed = seed
        self.private = private
        self.evaluation = evaluation
        self.log = log
        self.save = save
        self.stop = stop
        self.tick = tick
        self.rgp = Reparametrization(model)
        if self.rgp and isinstance(objective, HasPenalty):
            raise UsageError(
                f"adapter=rgp trains weights that the penalty of {type(objective).__name__} cannot reach: "
                "use adapter=lora or adapter=full"
            )
        self.parameters = self.rgp.stepped(
            {name: value for name, value in model.named_parameters() if value.requires_grad}
        )
        self.optimizer = _optimizer(config, self.parameters)
        self._best = -math.inf
        self._stale = 0

    def run(self, steps: int) -> Outcome:
        """Takes the steps up to `steps`, from the newest checkpoint if there is one.

        Raises Interrupted after a checkpoint when `stop` asks for it, PrivLMError when the loss is not finite.
        """
        status, step = "done", self._resume()
        saved = step
        if self.canaries is not None and step == 0:
            self.canaries.start()
        with self._step_function() as take_step:
            while step < steps:
                if self._out_of_patience():
                    status = "early_stop"
                    break
                if not self._affordable():
                    status = "budget_reached"
                    break
                step += 1
                self._set_learning_rate(step, steps)
                self.model.train()
                self.rgp.choose_factors(self.seed, step)
                with torch.random.fork_rng(devices=self._cuda_devices()):
                    values = take_step(step)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.tick(step)
                if values and (_due(step, self.config.log_every) or step == steps):
                    self.log(step, "train", **values)
                if _due(step, self.config.evaluate_every) or step == steps:
                    self._evaluate(step)
                signum = self._agree_on_stop()
                if signum or _due(step, self.config.checkpoint_every):
                    self._save(step)
                    saved = step
                if signum:
                    raise Interrupted(signum)
            if saved != step:
                self._save(step)
        if self.canaries is not None:
            self.canaries.finish(self.model)
        return Outcome(status, step)

    @contextlib.contextmanager
    def _step_function(self) -> Iterator[Callable[[int], dict[str, float]]]:
        """What leaves the gradient of a step in `.grad` and returns what may be logged of it."""
        if self.private is None:
            yield self._step
            return
        plan = self.private.plan
        engine = PrivacyEngine(self.model, clipping_norm=plan.clipping_norm, clipping=plan.clipping)
        check = SamplingCheck(plan.dataset_size, plan.sampling_rate)
        try:
            yield lambda step: self._private_step(step, engine, check)
        finally:
            engine.detach()

    # --- one step -------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> dict[str, float]:
        """Gradient of sum(weight * loss) / sum(weight) over the logical batch."""
        indices = ShuffledBatches(len(self.data), self.config.batch_size, self.seed).indices(step)
        totals = torch.zeros(2, dtype=torch.float64)  # sum of weight * loss, sum of weights
        for piece in self._pieces(indices):
            per_example = self._losses(step, piece)
            weight = torch.ones_like(per_example.loss) if per_example.weight is None else per_example.weight
            weighted = (weight * per_example.loss).sum()
            weighted.backward()
            totals += torch.stack([weighted.detach(), weight.sum()]).cpu().double()
        totals = self._sum_over_processes(totals.float().to(self.accelerator.device)).cpu().double()
        loss = float(totals[0] / totals[1])
        if not math.isfinite(loss):
            raise PrivLMError(f"the training loss is {loss} at step {step}: lower trainer.learning_rate")
        self.rgp.take_gradients()
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self._sum_over_processes(parameter.grad) / float(totals[1])
        self._add_penalty()
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        self._direct()
        return {"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _private_step(self, step: int, engine: PrivacyEngine, check: SamplingCheck) -> dict[str, float]:
        """Clipped and noised gradient of a Poisson batch; see privlm.privacy.engine for the guarantee."""
        assert self.private is not None
        plan = self.private.plan
        reproducible = plan.rng == "reproducible"
        sampler = PoissonSampler(
            plan.dataset_size, plan.sampling_rate, self.seed if reproducible else None, broadcast=_broadcast
        )
        indices = sampler.indices(step)
        check.see(indices)
        totals = torch.zeros(3)  # loss, clipped records, records
        for piece in self._pieces(indices):
            with engine.recording():
                per_example = self._losses(step, piece)
                if per_example.weight is not None:
                    raise PrivLMError(
                        "privacy: the objective weighs its examples, which lets one example change another's share; "
                        "use an objective without weights or privacy=none"
                    )
                statistics = engine.backward(per_example.loss)
            totals += torch.tensor([float(per_example.loss.detach().sum()), statistics.num_clipped, len(piece)])
        main = self.accelerator.is_main_process
        engine.release(
            ReproducibleNoise(self.seed) if reproducible else SecureNoise(),
            step=step,
            sampling_rate=plan.sampling_rate,
            noise_multiplier=plan.noise_multiplier,
            expected_batch_size=plan.expected_batch_size,
            world=self._world(),
            ledger=self.private.ledger if main else None,
        )
        self.rgp.take_gradients()
        self._add_penalty()
        self._direct()
        if not self.private.log_diagnostics:
            return {}
        loss, num_clipped, num_records = self._sum_over_processes(totals.to(self.accelerator.device)).tolist()
        seen = max(1.0, num_records)
        return {"loss": loss / seen, "clipped_fraction": num_clipped / seen, "batch_size": num_records}

    def _pieces(self, indices: Indices) -> list[Indices]:
        """This process's micro-batches of a logical batch."""
        mine = share(indices, self.accelerator.process_index, self.accelerator.num_processes)
        return micro_batches(mine, self.data.lengths, self.config.micro_batch_size)

    def _losses(self, step: int, piece: Indices) -> PerExample:
        # Dropout draws from torch's global generator: seeded by the first example, it is the same after a resume.
        torch.manual_seed(keyed_random.key_bits("dropout", self.seed, step, int(piece[0])) >> 65)
        device = self.accelerator.device
        batch = {name: tensor.to(device) for name, tensor in self.data.batch(piece).items()}
        with self.accelerator.autocast():
            per_example = self.losses(self.model, batch, ExampleRandom(self.seed, step, piece))
        if per_example.loss.shape != (len(piece),):
            raise ValueError(f"the objective gave losses of shape {tuple(per_example.loss.shape)}, not ({len(piece)},)")
        return per_example

    def _add_penalty(self) -> None:
        if not isinstance(self.objective, HasPenalty):
            return
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(self.objective.penalty(self.model), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _direct(self) -> None:
        if self.canaries is not None:
            self.canaries.collect()
        if isinstance(self.objective, HasDirection):
            gradient = {name: value.grad for name, value in self.parameters.items() if value.grad is not None}
            for name, direction in self.objective.direct(gradient).items():
                self.parameters[name].grad = direction

    def _set_learning_rate(self, step: int, steps: int) -> None:
        factor = learning_rate_factor(self.config.schedule, step, steps, self.config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    # --- between steps --------------------------------------------------------------------------------------------

    def _evaluate(self, step: int) -> None:
        values: dict[str, float] = {}
        if self.evaluation is not None:
            self.model.eval()
            values = dict(self.evaluation.function(self.model))
            self.log(step, self.evaluation.split, **values)
            metric = self.evaluation.early_stop_metric
            if metric is not None:
                improved = values[metric] > self._best
                self._best, self._stale = max(self._best, values[metric]), 0 if improved else self._stale + 1
        if self.private and self.accelerator.is_main_process:
            self.log(step, "train", epsilon=self.private.spent_through(step))

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stop_patience
        return patience is not None and self._stale >= patience

    def _save(self, step: int) -> None:
        if self.save is None:
            return
        if self.accelerator.is_main_process:
            progress = {"best": str(self._best), "stale": self._stale, "processes": self.accelerator.num_processes}
            if self.private:
                progress["releases"] = len(self.private.ledger)
            self.save.save(step, self.parameters, self.optimizer.state_dict(), progress)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns its step, 0 without one."""
        checkpoint = self.save.load() if self.save is not None else None
        if checkpoint is None:
            if self.save is not None:
                self.save.rewind(0)
            return 0
        assert self.save is not None
        processes = checkpoint.progress["processes"]
        if processes != self.accelerator.num_processes:
            raise PrivLMError(
                f"the checkpoint in {self.save.directory} was made by {processes} process(es), not "
                f"{self.accelerator.num_processes}: go on with the same number"
            )
        main = self.accelerator.is_main_process  # the others have no ledger
        if self.private and main and len(self.private.ledger) < checkpoint.progress["releases"]:
            raise PrivLMError(
                "the privacy ledger holds fewer releases than the checkpoint: the privacy spent is unknown, so the run "
                "cannot go on; restore privacy_ledger.jsonl, or start again with --force"
            )
        self.save.rewind(checkpoint.step)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.tensors[name])
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self._best, self._stale = float(checkpoint.progress["best"]), checkpoint.progress["stale"]
        logger.info("resumed from step %d", checkpoint.step)
        return checkpoint.step

    def _affordable(self) -> bool:
        """Whether one more release keeps the certified epsilon within the budget; the main process decides for all."""
        if self.private is None or math.isinf(self.private.plan.budget):
            return True
        return bool(_broadcast(self.accelerator.is_main_process and self.private.allows_one_more()))

    # --- processes ------------------------------------------------------------------------------------------------

    def _sum_over_processes(self, tensor: Tensor) -> Tensor:
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def _world(self) -> World | None:
        if self.accelerator.num_processes == 1:
            return None
        return World(
            self.accelerator.process_index, self.accelerator.num_processes, all_reduce=torch.distributed.all_reduce
        )

    def _agree_on_stop(self) -> int:
        """The signal that any process has received, so that all leave at the same step; 0 if none has."""
        signum = self.stop()
        if self.accelerator.num_processes == 1:
            return signum
        received = torch.tensor(signum, device=self.accelerator.device)
        torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
        return int(received)

    def _cuda_devices(self) -> list[torch.device]:
        device = self.accelerator.device
        return [device] if device.type == "cuda" else []


def _refuse_private_state(objective: Objective) -> None:
    if not isinstance(objective, HasPenalty | HasDirection):
        return
    if objective.private_state:
        raise UsageError(
            f"privacy: {', '.join(objective.private_state)} of {type(objective).__name__} comes from private data "
            "outside the ledger; use an objective without it, or privacy=none"
        )


def _broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    return broadcast_object_list([value])[0]


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _optimizer(config: Any, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """One parameter group for trainer.learning_rate, which comes first, and one for each of trainer.learning_rates."""
    by_beginning: dict[str, list[nn.Parameter]] = {name: [] for name in ("", *config.learning_rates)}
    for name, parameter in parameters.items():
        beginning = next((known for known in config.learning_rates if f"{name}.".startswith(f"{known}.")), "")
        by_beginning[beginning].append(parameter)
    for beginning in config.learning_rates:
        if not by_beginning[beginning]:
            raise UsageError(f"trainer.learning_rates: no parameter that trains has a name that begins '{beginning}.'")
    rates = {"": config.learning_rate, **config.learning_rates}
    groups = [
        {"params": members, "lr": rates[beginning], "initial_lr": rates[beginning]}
        for beginning, members in by_beginning.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
