"""The schema of the group `trainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.schema import setting


@dataclass
class TrainerConfig:
    """The training loop and the processes it runs in (configs/trainer)."""

    name: str = setting(options=("single", "ddp"), same_cell=True)
    processes: int = setting(above=0, same_cell=True)
    batch_size: int = setting(above=0)
    micro_batch_size: int = setting(above=0, same_cell=True)
    steps: int | None = setting(above=0, instead_of="epochs")
    epochs: float | None = setting(above=0, instead_of="steps")
    optimizer: str = setting(options=("sgd", "adamw"))
    learning_rate: float = setting(above=0)
    learning_rates: dict[str, float] = setting(above=0)
    final_learning_rate: float | None = setting(at_least=0, below=1)
    momentum: float = setting(at_least=0)
    weight_decay: float = setting(at_least=0)
    schedule: str = setting(options=("constant", "linear", "cosine", "onecycle"))
    warmup_steps: int = setting(at_least=0)
    warmup_share: float | None = setting(at_least=0, at_most=1)
    max_grad_norm: float | None = setting(above=0)
    precision: str = setting(options=("fp32", "bf16", "fp16"))
    deterministic: bool | None = MISSING
    log_every: int = setting(at_least=0, same_run=True)
    evaluate_every: int = setting(at_least=0)
    checkpoint_every: int = setting(at_least=0, same_run=True)
    keep_checkpoints: int = setting(above=0, same_run=True)
    early_stop_patience: int | None = setting(above=0)
    early_stop_metric: str | None = MISSING
    early_stop_mode: str | None = setting(options=("max", "min"))
    restore_best: bool | None = MISSING
    accelerate: dict[str, Any] = setting(same_cell=True)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = []
        if (self.steps is None) == (self.epochs is None):
            problems.append("trainer.steps, trainer.epochs: give one of the two and set the other to null")
        if self.warmup_share is not None and self.warmup_steps:
            problems.append("trainer.warmup_steps, trainer.warmup_share: give one of the two (warmup_steps=0 is none)")
        if self.final_learning_rate is not None and self.schedule != "cosine":
            problems.append(
                f"trainer.final_learning_rate is the floor of trainer.schedule=cosine; {self.schedule} has none"
            )
        for key in ("early_stop_patience", "restore_best"):
            if getattr(self, key) and not self.evaluate_every:
                problems.append(f"trainer.{key} needs trainer.evaluate_every above 0")
        if self.name == "single" and self.processes != 1:
            problems.append(f"trainer.processes={self.processes} needs trainer=ddp (trainer=single is one process)")
        return problems
