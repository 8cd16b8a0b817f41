"""The schema of the group `federated`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.privacy.schema import is_private
from privlm.schema import setting

STRATEGIES = (
    "none", "local", "fedavg", "fedavg_ft", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedadam", "fedyogi",
    "fedbn", "fedrep", "ditto", "pfedme",
)  # fmt: skip
"""none: the rows of all clients are one data set. The others are the keys of privlm.federated.strategies.STRATEGIES."""

PERSONAL = ("local", "fedavg_ft", "fedbn", "fedrep", "ditto", "pfedme")
"""Of these, those whose clients end with models of their own."""

TRAINED_TWICE = ("fedrep", "ditto")
"""Strategies whose clients train on their rows twice in a round: a common and a personal part."""
WIRE_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
"""federated.wire -> bytes of a number."""
PARTITIONS = ("by_column", "iid", "shards", "dirichlet", "explicit")
LORA = ("separate", "ffa", "stack", "svd", "residual", "zero_pad")
FOLDED = ("stack", "residual")
"""Aggregations of LoRA that change the base."""
SUMMABLE = ("separate", "ffa")
"""Aggregations of LoRA that are a sum over clients, as privacy by client and secure aggregation need it."""


@dataclass
class FaultConfig:
    """Faults that a run is given on purpose, drawn by key: what a federation meets sooner or later."""

    drop_rate: float = setting(at_least=0, below=1)
    straggler_rate: float = setting(at_least=0, below=1)
    nan_client: str | None = MISSING
    kill_at_round: int | None = setting(above=0, same_run=True)


@dataclass
class FederatedConfig:
    """Clients, rounds and the rule by which the server makes one model of many (configs/federated).

    What a strategy does not use is null.
    """

    name: str = setting(options=STRATEGIES)
    engine: str = setting(options=("inprocess", "pool", "flower"), same_cell=True)
    workers: int | None = setting(above=0, same_run=True)
    superlink: str | None = setting(same_run=True)
    timeout_s: float | None = setting(above=0, same_cell=True)
    connect_timeout_s: float = setting(above=0, same_run=True)

    partition: str = setting(options=PARTITIONS)
    num_clients: int | None = setting(above=0)
    shards_per_client: int = setting(above=0)
    alpha: float = setting(above=0)
    min_size: int = setting(above=0)
    manifest: str | None = setting(same_run=True)

    rounds: int = setting(above=0)
    fraction: float = setting(above=0, at_most=1)
    sampling: str = setting(options=("fixed", "poisson", "as_released"))
    min_clients: int = setting(above=0)
    on_too_few: str = setting(options=("retry", "skip", "fail"))
    weights: str = setting(options=("samples", "uniform", "clipped"))
    max_weight: float | None = setting(above=0)
    optimizer_state: str = setting(options=("reset", "keep", "average"))
    schedule: str = setting(options=("constant", "cosine"))
    evaluate_every: int = setting(at_least=0)

    lora: str = setting(options=LORA)
    ranks: dict[str, int] = setting(above=0)
    report_lora_error: bool = setting(same_run=True)
    wire: str = setting(options=tuple(WIRE_BYTES))
    max_update_mb: float = setting(above=0, same_run=True)
    secure_aggregation: bool = MISSING
    secure_threshold: float = setting(above=0, at_most=1)
    secure_clip: float = setting(above=0)

    proximal: float | None = setting(at_least=0)
    server_learning_rate: float | None = setting(above=0)
    server_momentum: float | None = setting(at_least=0, below=1)
    momentum_form: str | None = setting(options=("classic", "ema"))
    server_betas: list[float] | None = setting(at_least=0, below=1)
    server_tau: float | None = setting(above=0)
    head: list[str] | None = MISSING
    norm_keys: str | None = setting(options=("batch", "all"))
    personal_steps: int | None = setting(above=0)
    outer_learning_rate: float | None = setting(above=0)
    fault: FaultConfig = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and with the other groups."""
        if self.name == "none":
            return _without_clients(self, config)
        alone = [*_alone(self), *_by_flower(self)]
        return [*alone, *_with_trainer(self, config), *_with_privacy(self, config)]


def is_federated(config: Any) -> bool:
    """Whether the run has clients that train apart."""
    return config.federated is not None and config.federated.name != "none"


def _without_clients(federated: Any, config: Any) -> list[str]:
    problems = []
    if federated.engine == "flower":
        problems.append("federated.engine=flower needs clients: choose federated=fedavg")
    if config.privacy.mechanism == "dp_fedavg":
        problems.append("privacy=dp_fedavg protects clients, and federated=none has none: choose federated=fedavg")
    return problems


def _alone(federated: Any) -> list[str]:
    problems = []
    if federated.weights == "clipped" and federated.max_weight is None:
        problems.append("federated.weights=clipped needs federated.max_weight, the largest weight of a client")
    if federated.partition == "explicit" and federated.manifest is None:
        problems.append("federated.partition=explicit needs federated.manifest, a JSON file: client -> row numbers")
    if federated.partition in ("iid", "shards", "dirichlet") and federated.num_clients is None:
        problems.append(f"federated.partition={federated.partition} needs federated.num_clients")
    if federated.ranks and federated.lora not in ("svd", "stack", "zero_pad"):
        problems.append(
            f"federated.ranks: mixed ranks need federated.lora=svd, stack or zero_pad, not {federated.lora}"
        )
    if federated.lora not in SUMMABLE and federated.name not in ("fedavg", "fedprox", "fedavg_ft"):
        problems.append(
            f"federated.lora={federated.lora} makes the mean itself, and federated={federated.name} computes "
            "another: use federated=fedavg, or federated.lora=separate"
        )
    if federated.secure_aggregation and federated.lora not in SUMMABLE:
        problems.append(
            "federated.secure_aggregation shows the server a sum alone, and federated.lora="
            f"{federated.lora} needs each client's factors: use federated.lora=separate or ffa"
        )
    if federated.secure_aggregation and (
        federated.name in ("scaffold", "local") or federated.optimizer_state == "average"
    ):
        problems.append(
            f"federated.secure_aggregation sums updates of the model alone: not with federated={federated.name} and "
            f"federated.optimizer_state={federated.optimizer_state}"
        )
    if federated.secure_aggregation and federated.wire != "fp32":
        problems.append("federated.secure_aggregation quantises by itself: set federated.wire=fp32")
    return problems


def _by_flower(federated: Any) -> list[str]:
    if federated.engine != "flower":
        return []
    problems = []
    if federated.timeout_s is None:
        problems.append(
            "federated.engine=flower needs federated.timeout_s, the seconds of a round: a node that is gone does not "
            "say so"
        )
    if federated.name in PERSONAL:
        problems.append(not_on_nodes(federated.name))
    return problems


def not_on_nodes(name: str) -> str:
    """Why a strategy with own models of clients has no place on other machines."""
    return (
        f"federated={name} ends with a model of each client's own, which stays with its node, where nobody measures "
        "it: use federated.engine=inprocess or pool, or federated=fedavg"
    )


def _with_trainer(federated: Any, config: Any) -> list[str]:
    problems = []
    if config.trainer.processes != 1:
        problems.append("trainer.processes: a client trains in one process; federated.engine=pool uses all cores")
    if federated.name == "scaffold" and (config.trainer.optimizer != "sgd" or config.trainer.momentum):
        problems.append(
            "federated=scaffold corrects plain gradient steps: set trainer.optimizer=sgd trainer.momentum=0"
        )
    for key in ("evaluate_every", "early_stop_patience", "restore_best"):
        if getattr(config.trainer, key):
            problems.append(f"trainer.{key} has no place in a client's training: use federated.evaluate_every")
    adapter = getattr(config.adapter, "name", None)
    if adapter == "rgp":
        problems.append("adapter=rgp chooses its factors at each step, which cannot be averaged: use adapter=lora")
    if federated.lora != "separate" and adapter not in ("lora", "lora_emnlp"):
        problems.append(f"federated.lora={federated.lora} needs adapter=lora, not {adapter}")
    return problems


def _with_privacy(federated: Any, config: Any) -> list[str]:
    if not is_private(config):
        return []
    problems = []
    if config.privacy.audit.canaries != "none":
        problems.append("privacy.audit: canaries are planted by trainings of one model, not by federated rounds")
    if federated.optimizer_state == "average":
        problems.append("federated.optimizer_state=average sends more than privacy accounts for: reset or keep")
    if federated.lora not in SUMMABLE:
        problems.append(f"federated.lora={federated.lora} multiplies the noise of both factors: use ffa under privacy")
    if config.privacy.mechanism == "dp_fedavg":
        problems += _by_client(federated)
    return problems


def _by_client(federated: Any) -> list[str]:
    problems = []
    if federated.weights == "samples":
        problems.append(
            "federated.weights=samples lets a client's size set its share, which privacy by client cannot bound: "
            "use federated.weights=uniform, or clipped"
        )
    if federated.sampling != "poisson" and federated.fraction < 1:
        problems.append(
            f"federated.sampling={federated.sampling} draws a fixed number of clients, for which the accountant claims "
            "nothing: use federated.sampling=poisson"
        )
    if federated.name in ("scaffold", "local"):
        problems.append(
            f"privacy=dp_fedavg releases the mean of updates, which federated={federated.name} does not use"
        )
    if federated.on_too_few == "retry":
        problems.append("federated.on_too_few=retry asks for a second release of a round: use skip under dp_fedavg")
    return problems
