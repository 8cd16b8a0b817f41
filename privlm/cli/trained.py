"""The trained model of a finished run, for `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from privlm import registry
from privlm.errors import UsageError
from privlm.predictor import Predictor
from privlm.report.store import RunRecord


def config_of(run: RunRecord) -> DictConfig:
    """The run's resolved configuration, read-only."""
    config = OmegaConf.create(run.config)
    OmegaConf.set_readonly(config, True)
    return config


def predictor_of(run: RunRecord) -> Predictor:
    """Raises UsageError for a run that is not finished, or whose task is not installed or has no predictor."""
    _ = run.privacy  # raises for a ledger that does not add up
    if not run.finished:
        raise UsageError(f"{run.path} is {run.state}, not done: only a finished run has its model")
    name = run.config["task"]["name"]
    task = registry.tasks().get(name)
    if task is None:
        raise UsageError(f"{run.path} is of task '{name}', which is not installed")
    return task.predictor(config_of(run), run.path)
