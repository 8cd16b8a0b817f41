"""How the runs of a sweep are worked on. Nothing of it is part of a run: it enters no hash and no config.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from privlm.schema import setting


@dataclass
class SweepConfig:
    """workers: processes of this machine that work on runs at a time; SLURM has hydra.launcher.array_parallelism.

    stop_on_failure: when a run has failed, none is begun any more, and those at work are stopped, their state saved.
    allow_changed_code: runs that were queued are begun by other code than queued them.
    """

    workers: int = setting(at_least=1)
    stop_on_failure: bool = setting()
    allow_changed_code: bool = setting()


@dataclass
class SlurmConfig:
    """`hydra/launcher=privlm_slurm`: what is asked of SLURM for each run; null is SLURM's own default.

    One task a rank: nodes x tasks a node is trainer.processes.
    timeout_min: minutes; what is not done then is queued again and resumed, at most max_num_timeout times.
    signal_delay_s: seconds before the end at which a run is told to save. mem_gb: of a node.
    array_parallelism: runs at a time. setup: lines of the shell before the run. additional_parameters: options of
    sbatch by their long names, `{exclusive: true, reservation: maintenance}`.
    """

    partition: str | None = setting()
    account: str | None = setting()
    qos: str | None = setting()
    constraint: str | None = setting()
    timeout_min: int = setting(at_least=1)
    nodes: int = setting(at_least=1)
    gpus_per_node: int | None = setting(at_least=0)
    cpus_per_task: int | None = setting(at_least=1)
    mem_gb: float | None = setting(above=0)
    array_parallelism: int = setting(at_least=1)
    signal_delay_s: int = setting(at_least=1)
    max_num_timeout: int = setting(at_least=0)
    setup: list[str] | None = setting()
    additional_parameters: dict[str, Any] = setting()
