"""One step of training, whatever its gradient: learning rate, gradient, penalty, direction, optimizer, what is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from privlm.errors import PrivLMError, UsageError
from privlm.privacy import keyed_random
from privlm.privacy.rgp import Reparametrization
from privlm.training.batches import Batches
from privlm.training.canaries import Canaries
from privlm.training.gradients import Examples, Gradient, MeanGradient, Totals
from privlm.training.meter import Meter
from privlm.training.objective import Objective
from privlm.training.optimizers import make_optimizer
from privlm.training.private import Private, PrivateGradient
from privlm.training.schedule import learning_rate_factor


class Stepper:
    """Takes the steps of one training run.

    parameters: what the optimizer steps, by name. scaler: makes losses large enough for half precision; without effect
    in any other.

    Raises UsageError where a penalty cannot reach the weights that train, or precision=fp16 meets weights in it.
    """

    def __init__(
        self,
        objective: Objective,
        examples: Examples,
        batches: Batches,
        config: Any,
        private: Private | None,
        canaries: Canaries | None,
    ) -> None:
        self.objective = objective
        self.examples = examples
        self.batches = batches
        self.config = config
        self.private = private
        self.canaries = canaries
        self.rgp = Reparametrization(examples.model)
        if self.rgp and type(objective).penalty is not Objective.penalty:
            raise UsageError(
                f"adapter=rgp trains weights that the penalty of {type(objective).__name__} cannot reach: "
                "use adapter=lora or adapter=full"
            )
        self.parameters = self.rgp.stepped(
            {name: value for name, value in examples.model.named_parameters() if value.requires_grad}
        )
        self.optimizer = make_optimizer(config, self.parameters)
        self.scaler = examples.accelerator.scaler or torch.amp.GradScaler(enabled=False)
        if self.scaler.is_enabled():
            _refuse_half_weights(self.parameters)
        self.meter = Meter(examples.accelerator.device)
        self._bad_step = torch.zeros((), dtype=torch.int64, device=examples.accelerator.device)

    @contextlib.contextmanager
    def gradient(self) -> Iterator[Gradient]:
        """What leaves the gradient of a step in `.grad`, clipped and noised under privacy; the engine goes with it."""
        if self.private is None:
            yield MeanGradient(self.examples, self.batches, self.parameters, self.rgp, self.scaler)
            return
        with contextlib.closing(PrivateGradient(self.private, self.examples, self.rgp)) as gradient:
            yield gradient

    def take(self, gradient: Gradient, step: int, steps: int, *, is_read: bool) -> dict[str, dict[str, float]]:
        """Takes `step` of `steps`; what may be told of it where it `is_read`, by split, which waits for the device."""
        factor = learning_rate_factor(self.config, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.rgp.choose_factors(self.examples.seed, step)
        with self.meter:
            with self.keyed_random("examples", step):
                totals = gradient(step)
            if totals is not None:
                self._watch(step, totals)
            norm = self._clip(is_read and totals is not None)
            with self.keyed_random("objective", step):
                self._add_penalty()
                self._direct(step)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.objective.stepped(self.examples.model, step)
            self.optimizer.zero_grad(set_to_none=True)
            train = self._read(totals, norm) if is_read else {}
        if not is_read:
            return {}
        # The drawn batch is private, and its size shows in speed and memory.
        return {"train": train} | ({} if totals is None else {"run": self.meter.read()})

    def refuse_bad_loss(self) -> None:
        """Raises PrivLMError where the loss of a step was not finite; waits for the device."""
        _refuse_bad_step(int(self._bad_step))

    @contextlib.contextmanager
    def keyed_random(self, purpose: str, step: int) -> Iterator[None]:
        """torch's global generator as a function of purpose and step, and then as it was before."""
        device = self.examples.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(keyed_random.key_bits("global generator", purpose, self.examples.seed, step) >> 65)
            yield

    def _watch(self, step: int, totals: Totals) -> None:
        """Remembers the first step with a loss that is not finite, without waiting for the device."""
        self.meter.num_examples += totals.num_examples
        if self.private is None:
            is_first = ~totals.loss.isfinite() & (self._bad_step == 0)
            self._bad_step = self._bad_step.masked_fill(is_first, step)

    def _clip(self, is_read: bool) -> Tensor | None:
        """Clips the gradient of the examples to trainer.max_grad_norm; its norm before, where that is known or read.

        What gradient canaries get is theirs: neither penalty nor optimizer sees it.
        """
        self.scaler.unscale_(self.optimizer)
        norm = None
        if self.private is None and self.config.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        elif is_read:
            norm = nn.utils.get_total_norm(self._gradients().values())
        if self.canaries is not None:
            self.canaries.collect()
        return norm

    def _add_penalty(self) -> None:
        penalty = self.objective.penalty(self.examples.model)
        if not isinstance(penalty, Tensor) or not penalty.requires_grad:
            return  # none, or a constant, as before the first task of a sequence
        if penalty.numel() != 1:
            raise ValueError(f"the penalty of the objective has shape {tuple(penalty.shape)}: it must be one number")
        present = self._gradients()
        added = torch.autograd.grad(penalty, [self.parameters[name] for name in present], allow_unused=True)
        for (name, gradient), more in zip(present.items(), added, strict=True):
            if more is not None:
                self.parameters[name].grad = gradient + more

    def _direct(self, step: int) -> None:
        present = self._gradients()
        directed = self.objective.direct(dict(present), self.examples.model, step)
        if unknown := directed.keys() - present.keys():
            raise ValueError(f"direct() of the objective gave a gradient for {unknown.pop()!r}, which has none")
        for name, direction in directed.items():
            self.parameters[name].grad = direction

    def _gradients(self) -> dict[str, Tensor]:
        return {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def _read(self, totals: Totals | None, norm: Tensor | None) -> dict[str, float]:
        """Of split train: under privacy the learning rate alone, unless diagnostics were asked for."""
        values = {"learning_rate": self.optimizer.param_groups[0]["lr"]}
        if totals is None:
            return values
        assert norm is not None
        read = totals.read(self.examples.accelerator, gradient_norm=norm, bad_step=self._bad_step)
        _refuse_bad_step(int(read.pop("bad_step")))
        weight = read.pop("weight")
        if self.private is not None:
            values["batch_size"] = weight
        if self.scaler.is_enabled():
            values["loss_scale"] = self.scaler.get_scale()
        return read | values


def _refuse_half_weights(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.dtype == torch.float16:
            raise UsageError(
                "trainer.precision=fp16 computes in half precision; the weights that train must be float32, and "
                f"{name} is float16: load the model in float32"
            )


def _refuse_bad_step(step: int) -> None:
    if step:
        raise PrivLMError(f"the training loss is not finite at step {step}: lower trainer.learning_rate")
