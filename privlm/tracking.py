"""Trackers repeat the metrics of a run elsewhere. metrics.jsonl is the truth; a failing tracker never fails the run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import MISSING, OmegaConf

from privlm.errors import UsageError
from privlm.masking import mask_secrets
from privlm.schema import setting

logger = logging.getLogger("privlm")


@dataclass
class TrackerConfig:
    """Where metrics are repeated, beside metrics.jsonl (configs/tracker)."""

    name: str = setting(options=("none", "wandb", "tensorboard"))
    project: str = MISSING
    mode: str = setting(options=("offline", "online", "disabled"))
    media: bool = MISSING


PLAIN_STAGE = "train"
"""What a task calls its only stage of training: its points keep the plain names `<split>/<name>`."""


class Backend(Protocol):
    """What a tracker offers: named points at a step, and an end.

    stage: '' for plain names, else the beginning of all of them; each stage has steps of its own.
    """

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """Hands metrics to a backend until it fails once; the failure is logged and the run goes on without it."""

    def __init__(self, name: str, open_backend: Callable[[], Backend] | None) -> None:
        self.name = name
        self._backend: Backend | None = None
        if open_backend is not None:
            self._attempt(lambda: setattr(self, "_backend", open_backend()))

    def log(self, stage: str, step: int, split: str, series: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Repeats one evaluation: the listener that a Job calls for each metrics row it writes.

        A point is called `<stage>/<split>/<name>`, with `/client=3` behind it for one of a series.
        """
        backend = self._backend
        if backend is None:
            return
        prefix = "" if stage == PLAIN_STAGE else f"{stage}/"
        suffix = "".join(f"/{key}={label}" for key, label in series.items())
        points = {f"{prefix}{split}/{name}{suffix}": value for name, value in values.items()}
        self._attempt(lambda: backend.log(prefix, step, points))

    def close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            self._attempt(backend.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except UsageError:
            raise
        except Exception as error:  # whatever a tracker's library raises
            self._backend = None
            logger.warning("tracker=%s failed and is off for the rest of the run: %s", self.name, error)


def open_tracker(config: Any, run_id: str, run_dir: Path) -> Tracker:
    """The tracker that `config.tracker` names, for the run in `run_dir`.

    config: the whole configuration of the run; the values of its secret keys are masked.
    run_id: the run hash, so that a requeued job continues the same run.

    Raises UsageError for an unknown tracker or one whose package is not installed.
    """
    tracker = config.tracker
    openers: dict[str, Callable[[], Backend] | None] = {
        "none": None,
        "wandb": lambda: WandbBackend(tracker.project, tracker.mode, run_id, run_dir, config),
        "tensorboard": lambda: TensorboardBackend(run_dir),
    }
    if tracker.name not in openers:
        raise UsageError(f"tracker.name={tracker.name}: the trackers are {', '.join(openers)}")
    return Tracker(tracker.name, openers[tracker.name])


class WandbBackend:
    """Weights & Biases, offline unless `mode` or the environment variable WANDB_MODE says otherwise.

    Steps are an ordinary value, `step`, of each stage its own: wandb's one counter knows no stages, and drops what a
    resumed run logs for a step a second time.
    """

    def __init__(self, project: str, mode: str, run_id: str, run_dir: Path, config: Any) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            id=run_id,
            name=run_dir.name,
            resume="allow",
            dir=run_dir,
            mode=os.environ.get("WANDB_MODE", mode),  # type: ignore[arg-type]
            config=mask_secrets(OmegaConf.to_container(config, resolve=True)),
            # env.json tells of machine and code; wandb's own account holds the command line and the address of git.
            settings=wandb.Settings(console="off", x_disable_meta=True, disable_git=True, save_code=False),
        )
        self._known: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name in values.keys() - self._known:  # one by one: a pattern for all would give each point two steps
            self._run.define_metric(name, step_metric=f"{stage}step")
        self._known |= values.keys()
        self._run.log({**values, f"{stage}step": step})

    def close(self) -> None:
        self._run.finish()


class TensorboardBackend:
    """Event files in RUN_DIR/tensorboard. Of a step that a resumed run logs again, readers take the last value."""

    def __init__(self, run_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "tracker=tensorboard needs the package tensorboard: pip install 'privlm[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(run_dir / "tensorboard")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
