"""A linear regression for tests of the training loop: data, objective, settings, private plans, and one call that
trains.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from privlm.config import TrainerConfig, defaults
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import PrivacyPlan, make_plan
from privlm.training.objective import ExampleRandom, Objective, PerExample
from privlm.training.trainer import Monitor, Private, Trainer

NUM_EXAMPLES = 50


class Points:
    """y = 2 x + 1 with a little noise, as a data set of the trainer."""

    lengths = None

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = torch.from_numpy(rng.normal(size=(NUM_EXAMPLES, 3)).astype(np.float32))
        self.y = 2 * self.x.sum(1) + 1 + 0.1 * torch.from_numpy(rng.normal(size=NUM_EXAMPLES).astype(np.float32))

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.y[indices], "weight": torch.from_numpy(1.0 + indices % 3).float()}


class Squares(Objective):
    """Squared error of a linear model; optionally weighted."""

    def __init__(self, weighted: bool = False) -> None:
        self.weighted = weighted

    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        loss = (model(batch["x"]).squeeze(-1) - batch["y"]) ** 2
        return PerExample(loss, batch["weight"] if self.weighted else None)


def settings(**changes: Any) -> TrainerConfig:
    base = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 10, "micro_batch_size": 4, "log_every": 1}
    return defaults(TrainerConfig, "trainer", "single", **(base | changes))


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@cache
def plan(steps: int = 20) -> PrivacyPlan:
    privacy = {
        "delta": 1e-3, "allow_large_delta": False, "adjacency": "add_remove", "noise_multiplier": 1.0, "epsilon": None,
        "accountant": "pld", "order": 2, "strict": True, "clipping": "flat", "clipping_norm": 1.0,
        "sampling": "poisson", "rng": "reproducible",
    }  # fmt: skip
    return make_plan(SimpleNamespace(**privacy), dataset_size=NUM_EXAMPLES, batch_size=10, steps=steps)


def private(plan: PrivacyPlan, path: Path | None = None, **changes: Any) -> Private:
    return Private(plan, Ledger(path), **changes)


def weights(model: nn.Module) -> list[float]:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()


def trained(objective: Objective | None = None, steps: int = 20, model: nn.Module | None = None, **options: Any) -> Any:
    """What a training run leaves: model, outcome, weights, and the rows of its log. Options are the Trainer's and its
    Monitor's.
    """
    model = model or linear()
    rows: list[tuple[int, str, dict[str, float]]] = []

    def log(step: int, split: str, **values: float) -> None:
        rows.append((step, split, values))

    heard = {name: options.pop(name) for name in ("save", "stop", "tick") if name in options}
    data, config = options.pop("data", None) or Points(), options.pop("config", None) or settings()
    trainer = Trainer(model, objective or Squares(), data, config, monitor=Monitor(log=log, **heard), **options)
    outcome = trainer.run(steps)
    train = [values for _, split, values in rows if split == "train"]
    return SimpleNamespace(model=model, outcome=outcome, rows=rows, train=train, weights=weights(model))
