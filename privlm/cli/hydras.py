"""What of Hydra's own configuration has an effect here: its launcher and its sweeper's params. The rest is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm.errors import UsageError

LAUNCHER = "privlm_slurm"

FOLDERS = "runs=FOLDER names the folder of all run directories, each of which is named by its configuration"
INSTEAD = {
    "hydra.run.dir": FOLDERS,
    "hydra.sweep.dir": FOLDERS,
    "hydra.sweep.subdir": FOLDERS,
    "hydra.output_subdir": "a run directory holds its own config.yaml",
    "hydra.job.chdir": "a run keeps the working directory; its files lie below runs=FOLDER",
    "hydra.verbose": "a run's messages, warnings of libraries included, stand in its run.log",
    "hydra.job_logging": "a run's messages, warnings of libraries included, stand in its run.log",
    "hydra.hydra_logging": "a run's messages, warnings of libraries included, stand in its run.log",
    "hydra.sweeper": "give a list of values as words, KEY=A,B, or hydra.sweeper.params in a YAML",
    "hydra.launcher": f"hydra/launcher={LAUNCHER} has settings; workers of this machine have sweep.workers=N",
    "hydra.mode": "privlm run is one run, privlm sweep is many",
    "hydra.callbacks": "trackers hear of a run: tracker=wandb or tracker=tensorboard",
}
"""Key or group of Hydra's that has no effect here -> what does the same."""

VALUES = {
    "hydra.run.dir": ".",
    "hydra.output_subdir": None,
    "hydra.job.chdir": False,
    "hydra.verbose": False,
    "hydra.sweep.dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}",
    "hydra.sweep.subdir": "${hydra.job.num}",
}
"""What configs/config.yaml and Hydra say of keys that a user's YAML could set."""


def refuse_words(overrides: Sequence[str]) -> None:
    """Raises UsageError for a word that sets what has no effect here, naming what does the same."""
    for word in overrides:
        key = word.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        value = word.partition("=")[2]
        if key == "hydra.launcher" and "/" in word:
            if value not in (LAUNCHER, "basic"):
                raise UsageError(
                    f"{word}: runs go to SLURM by hydra/launcher={LAUNCHER}, to workers of this machine by "
                    "sweep.workers=N"
                )
        elif key == "hydra.sweeper" and "/" in word:
            if value == "basic":
                continue
            raise UsageError(f"{word}: privlm sweep runs every combination of the values given, KEY=A,B; none is drawn")
        elif key.startswith("hydra.") and not key.startswith(("hydra.launcher.", "hydra.searchpath")):
            raise UsageError(f"{word} has no effect here: {_instead(key)}")


def refuse_unused(composed: DictConfig) -> None:
    """The same for a user's YAML. composed: with its node `hydra`."""
    for key, value in VALUES.items():
        if (found := _raw(composed, key)) != value:
            raise UsageError(f"{key}={found} has no effect here: {_instead(key)}")
    choices = composed.hydra.runtime.choices
    refuse_words([f"{group}={choices[group]}" for group in ("hydra/launcher", "hydra/sweeper")])


def launcher_of(composed: DictConfig) -> DictConfig | None:
    """The settings of `hydra/launcher=privlm_slurm`, where it was chosen."""
    return composed.hydra.launcher if composed.hydra.runtime.choices["hydra/launcher"] == LAUNCHER else None


def _raw(composed: DictConfig, key: str) -> Any:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(composed, parent)._get_node(name)
    return None if node is None else node._value()


def _instead(key: str) -> str:
    parts = key.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
    return next((INSTEAD[one] for one in candidates if one in INSTEAD), "privlm does not use that part of Hydra")
