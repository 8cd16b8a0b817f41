"""One client at work in one round, as a strategy sees it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from privlm.errors import PrivLMError
from privlm.federated.aggregate import Tensors, difference
from privlm.federated.federation import Federation
from privlm.federated.messages import OPTIMIZER, beside_model, named, of_kind, of_model
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy import keyed_random
from privlm.training.objective import Objective
from privlm.training.optimizers import rates_of
from privlm.training.private import Private
from privlm.training.schedule import learning_rate_factor
from privlm.training.trainer import Monitor, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator


class LocalWork:
    """See privlm.federated.strategy.Local; what is in `personal` afterwards is kept.

    rate: factor of the learning rate in this round.
    private: makes the account of a training that begins after so many steps of this round; None without privacy.
    """

    def __init__(
        self,
        federation: Federation,
        client: str,
        *,
        received: Tensors,
        personal: Tensors,
        seed: int,
        accelerator: Accelerator,
        rate: float = 1.0,
        private: Callable[[int], Private] | None = None,
    ) -> None:
        self.federation = federation
        self.client = client
        self.model: nn.Module = federation.loaded.model
        self.objective: Objective = federation.objective
        self.data = federation.data[client]
        self.received = of_model(received)
        self.received_beside = beside_model(received)
        self.personal = personal
        self.num_steps = federation.num_steps(client)
        self.num_rows = len(self.data)
        self.steps_taken = 0
        self.is_out_of_budget = False
        self.metrics: dict[str, float] = {}
        self.sent_beside: Tensors = {}
        self._seed = seed
        self._accelerator = accelerator
        self._config = _LocalConfig(federation.config.trainer, rate)
        self._private = private
        self._keeps_optimizer = federation.config.federated.optimizer_state != "reset"
        self.put(self.received | self._kept_parts())

    # --- the model -------------------------------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """See Local."""
        return self.federation.exchange.take(self.client)

    def update(self) -> Tensors:
        """What travels, less what was received; float32."""
        tensors = self.tensors()
        return difference(tensors, {name: self.received[name] for name in tensors})

    def put(self, tensors: Tensors) -> None:
        """See Local."""
        self.federation.exchange.put(tensors, self.client)

    def own_model(self) -> Tensors:
        """See Local."""
        return of_model(self.personal)

    def keep_model(self) -> None:
        """See Local."""
        whole = self.tensors() | self.federation.exchange.take_personal()
        self.personal = beside_model(self.personal) | whole

    def send(self, tensors: Tensors) -> None:
        """See Local."""
        self.sent_beside |= tensors

    # --- training --------------------------------------------------------------------------------------------------

    def fit(
        self,
        objective: Objective | None = None,
        *,
        steps: int | None = None,
        only: Callable[[str], bool] | None = None,
        learning_rate: float | None = None,
        purpose: str = "train",
    ) -> float:
        """See Local."""
        steps = self.num_steps if steps is None else steps
        private = None if self._private is None else self._private(self.steps_taken)
        with _only(self.model, only):
            config = self._config if only is None else self._config.of_part(self.model)
            config = config if learning_rate is None else config.at_one_rate(learning_rate)
            taken = self._train(objective or self.objective, config, steps, private, purpose)
        self.steps_taken += taken
        rates = (learning_rate_factor(config, step, steps) for step in range(1, taken + 1))
        return config.learning_rate * sum(rates)

    def _train(
        self, objective: Objective, config: _LocalConfig, steps: int, private: Private | None, purpose: str
    ) -> int:
        heard: dict[str, list[float]] = defaultdict(list)

        def log(step: int, split: str, **values: float) -> None:
            for name in ("loss", "gradient_norm"):
                if split == "train" and name in values:
                    heard[name].append(values[name])

        trainer = Trainer(
            self.model,
            objective,
            self.data,
            config,
            seed=keyed_random.key_bits("local training", self._seed, purpose) >> 65,
            accelerator=self._accelerator,
            private=private,
            monitor=Monitor(log=log),
        )
        kind = f"{OPTIMIZER}/{purpose}"
        if self._keeps_optimizer:
            _set_state(trainer, of_kind(kind, self.personal) | of_kind(kind, self.received_beside))
        outcome = trainer.run(steps)
        if self._keeps_optimizer:
            state = named(kind, _state_of(trainer))
            self.personal |= state
            if self.federation.config.federated.optimizer_state == "average":
                self.send(state)
        self.is_out_of_budget |= outcome.status == "budget_reached"
        for name, values in heard.items():
            suffix = "" if purpose in ("train", "body") else f"_{purpose}"
            self.metrics[f"{name}{suffix}"] = sum(values) / len(values)
        return outcome.steps

    def _kept_parts(self) -> Tensors:
        """Those parts of the model that never travel."""
        is_personal = self.federation.strategy.is_personal
        return {name: value for name, value in self.own_model().items() if is_personal(name)}

    def keep_parts(self) -> None:
        """Puts the parts of the model that never travel into what the client keeps."""
        self.personal = self.personal | self.federation.exchange.take_personal()


class _LocalConfig:
    """A TrainerConfig for the training of a client: its rates by a factor, and every step's loss is read."""

    def __init__(self, config: Any, rate: float) -> None:
        self._config, self._rate = config, rate
        self.learning_rate = config.learning_rate * rate
        self.learning_rates = {name: value * rate for name, value in dict(config.learning_rates).items()}
        self.log_every = 1
        self.checkpoint_every = 0

    def of_part(self, model: nn.Module) -> _LocalConfig:
        """Without rates of what is frozen."""
        training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        part = _LocalConfig(self._config, self._rate)
        part.learning_rates = rates_of(self.learning_rates, training)
        return part

    def at_one_rate(self, learning_rate: float) -> _LocalConfig:
        """With this rate for all that trains."""
        same = _LocalConfig(self._config, self._rate)
        same.learning_rate, same.learning_rates = learning_rate * self._rate, {}
        return same

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


@contextlib.contextmanager
def _only(model: nn.Module, chosen: Callable[[str], bool] | None) -> Iterator[None]:
    """These parameters alone train, and running statistics of what is frozen stay (privlm.training.modes). Raises where
    none is left.
    """
    if chosen is None:
        yield
        return
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    frozen = [value for name, value in trained.items() if not chosen(name)]
    if len(frozen) == len(trained):
        raise PrivLMError("no parameter is left to train in this part of a client's round")
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _state_of(trainer: Trainer) -> Tensors:
    """The optimizer's state, by the name of the parameter and of the number: exp_avg/encoder.weight."""
    optimizer, names = trainer.stepper.optimizer, {id(p): name for name, p in trainer.stepper.parameters.items()}
    return {
        f"{key}/{names[id(parameter)]}": value.detach().cpu().clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def _set_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    optimizer, parameters = trainer.stepper.optimizer, trainer.stepper.parameters
    for full_name, value in state.items():
        key, _, name = full_name.partition("/")
        parameter = parameters[name]
        device = "cpu" if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.clone().to(device)
