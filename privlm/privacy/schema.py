"""The schema of the group `privacy`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf

from privlm.errors import UsageError
from privlm.schema import positive, setting


@dataclass
class AuditConfig:
    """Canaries that an audited run trains with, and the guesses about them, all fixed beforehand."""

    canaries: str = setting(options=("none", "dirac", "mislabel", "random_tokens"))
    num_canaries: int = setting(at_least=10)
    guesses_in: int = setting(at_least=0)
    guesses_out: int = setting(at_least=0)
    confidence: float = setting(above=0, below=1)
    seed: int = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        if self.guesses_in + self.guesses_out <= self.num_canaries:
            return []
        return [
            f"privacy.audit.guesses_in={self.guesses_in}, guesses_out={self.guesses_out}: together at most "
            f"num_canaries={self.num_canaries}"
        ]


@dataclass
class PrivacyConfig:
    """The privacy mechanism and its accountant (configs/privacy)."""

    mechanism: str = setting(options=("none", "dp_sgd", "dp_fedavg"))
    epsilon: float | None = setting(instead_of="noise_multiplier")
    delta: Any = MISSING  # a number, or the text 1/2N
    noise_multiplier: float | None = setting(above=0, instead_of="epsilon")
    clipping_norm: float = setting(above=0)
    clipping: str = setting(options=("flat", "per_layer", "automatic"))
    sampling: str = setting(options=("poisson",))
    accountant: str = setting(options=("pld", "rdp", "gdp", "edgeworth"))
    order: int = setting(at_least=0, at_most=3)
    strict: bool = MISSING
    adjacency: str = setting(options=("add_remove", "zero_out", "replace_one"))
    rng: str = setting(options=("secure", "reproducible"))
    allow_large_delta: bool = MISSING
    log_private_diagnostics: bool = MISSING
    audit: AuditConfig = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the trainer."""
        if not is_private(config):
            return []
        problems = []
        if (self.epsilon is None) == (self.noise_multiplier is None):
            problems.append(
                "privacy.epsilon, privacy.noise_multiplier: give one of the two (the other is computed) "
                "and set the other to null"
            )
        if self.epsilon is not None and math.isinf(self.epsilon):
            problems.append("privacy.epsilon=inf promises nothing: use privacy=none")
        else:
            problems += positive("privacy.epsilon", self.epsilon)
        if is_private_by_client(config):
            return problems + _check_by_client(self, config)
        problems += _check_delta(self.delta)
        if config.trainer.precision == "fp16":
            problems.append("trainer.precision=fp16 scales gradients, which privacy=dp_sgd clips: use bf16 or fp32")
        if config.trainer.max_grad_norm is not None:
            problems.append("trainer.max_grad_norm has no place under privacy: set privacy.clipping_norm instead")
        return problems


def is_private(config: Any) -> bool:
    """Whether the run trains under a privacy mechanism, whatever it protects."""
    return config.privacy.mechanism != "none"


def is_private_by_record(config: Any) -> bool:
    """Whether the Trainer clips the gradient of each record and adds noise to their sum."""
    return config.privacy.mechanism == "dp_sgd"


def is_private_by_client(config: Any) -> bool:
    """Whether a server clips the update of each client and adds noise to their sum; the clients train without."""
    return config.privacy.mechanism == "dp_fedavg"


def refuse_by_client(config: Any, what: str) -> None:
    """Raises UsageError under a mechanism that clips what clients send, where records would be trained on unclipped.

    what: trains on them.
    """
    if is_private_by_client(config):
        raise UsageError(
            f"privacy=dp_fedavg clips what clients send, and {what}, which has none: take privacy=dp_sgd, or a task "
            "with federated=..."
        )


def _check_by_client(privacy: Any, config: Any) -> list[str]:
    """What client-level privacy asks for besides."""
    problems = []
    if OmegaConf.select(config, "federated") is None:
        problems.append("privacy=dp_fedavg protects clients, and this run has none: it needs federated=...")
    if privacy.delta is None:
        problems.append("privacy.delta must be given with privacy=dp_fedavg: below 1 / the number of clients, or 1/2N")
    else:
        problems += _check_delta(privacy.delta)
    if privacy.clipping != "flat":
        problems.append(f"privacy.clipping={privacy.clipping} is of gradients: with privacy=dp_fedavg use flat")
    if privacy.audit.canaries != "none":
        problems.append("privacy.audit.canaries stand in place of records, which privacy=dp_fedavg does not protect")
    return problems


def _check_delta(delta: Any) -> list[str]:
    if delta == "1/2N":
        return []
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        return [f"privacy.delta must be a number between 0 and 1, or 1/2N, not {delta!r}"]
    return []
