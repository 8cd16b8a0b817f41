"""One run: its directory, lock, status, stages, metrics, result and signals.

A Job is the only object that a runner receives besides its config. It makes the promise that a run can be killed at any
moment and is finished by the same command: finished stages are skipped, the running one goes on from its last
checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from privlm import files
from privlm.progress import progress
from privlm.rundir import SCHEMA
from privlm.signals import Interrupted, StopFlag

if TYPE_CHECKING:
    from accelerate import Accelerator

    from privlm.training.canaries import Canaries

HEARTBEAT_SECONDS = 10.0

logger = logging.getLogger("privlm")


@dataclass(frozen=True)
class Result:
    """One row of result.json: a number with its unit, its sample size and its interval."""

    metric: str
    value: float
    unit: str = "fraction"
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    split: str | None = None
    provenance: str = "measured"


class Stage:
    """A unit of work inside a run, with its own files and progress.

    needed: False when an earlier try of this run has finished the stage and its outputs are as they were left.
    checkpoints: the folder of this stage's checkpoints.
    """

    def __init__(self, job: Job, name: str, needed: bool) -> None:
        self.job = job
        self.name = name
        self.needed = needed
        self.checkpoints = job.directory / "checkpoints" / name
        self._outputs: dict[str, str] = {}

    def output(self, path: Path) -> None:
        """Records a finished file of this stage by its content, so that a resumed run can trust it."""
        self._outputs[str(path.relative_to(self.job.directory))] = files.sha256_file(path)

    def log(self, step: int, split: str, **values: float) -> None:
        self.job.log(step, split, stage=self.name, **values)

    def rewind(self, step: int) -> None:
        """Forgets this stage's metrics after `step`: they belong to steps that will be taken again."""
        self.job.rewind(self.name, step)


class Job:
    """A run in its directory. Only the process of rank 0 writes.

    directory: holds config.yaml, written by `create`.
    rank: of this process; the others see the same stages and write nothing.
    """

    def __init__(self, directory: Path, rank: int = 0) -> None:
        self.directory = directory
        self.rank = rank
        self.config = OmegaConf.load(directory / "config.yaml")
        OmegaConf.set_readonly(self.config, True)
        self.stop = StopFlag()
        self.listeners: list[Callable[[int, str, dict[str, float]], None]] = []
        self._metrics = directory / "metrics.jsonl"
        self._status: dict[str, Any] = files.read_json(directory / "status.json")
        self._started = time.monotonic()
        self._cpu_started = time.process_time()
        self._heartbeat = 0.0
        self._open: list[str] = []
        if self.is_main:
            files.cut_torn_line(self._metrics)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def run_hash(self) -> str:
        return self._status["run_hash"]

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes of this run; made once, its world verified."""
        from privlm.training.accelerator import make_accelerator

        return make_accelerator(self.config.trainer)

    def canaries(self) -> Canaries | None:
        """What an audited run hands to its Trainer; None for an ordinary run."""
        from privlm.training.canaries import make_canaries

        privacy = self.config.privacy
        folder = self.directory / "audit" if self.is_main else None
        return make_canaries(privacy.audit, clipping_norm=privacy.clipping_norm, folder=folder)

    @contextlib.contextmanager
    def progress(
        self, description: str, total: int, *, start: int = 0, interruptible: bool = False
    ) -> Iterator[Callable[[int], None]]:
        """A progress bar of the main process; see privlm.progress.

        interruptible: telling progress also honours a request to stop (the trainer does this itself, after saving).
        """
        with progress(description, total, start=start, visible=self.is_main) as show:

            def tick(done: int) -> None:
                show(done)
                if interruptible and self.stop.signum:
                    raise Interrupted(self.stop.signum)

            yield tick

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A named unit of work; its body asks `stage.needed` before it works."""
        assert name not in self._open, f"stage {name} is open already"
        record = self._status["stages"].get(name)
        stage = Stage(self, name, needed=not self._is_finished(record))
        if not stage.needed:
            yield stage
            return
        if record is not None and record["state"] == "done":
            logger.warning("the outputs of stage %s have changed since it finished: it is done again", name)
        if not stage.checkpoints.exists():
            self.rewind(name, -1)
        started = time.monotonic()
        self._open.append(name)
        self._update_stage(name, {"state": "running", "seconds": None, "outputs": {}})
        try:
            yield stage
        finally:
            self._open.pop()
        seconds = time.monotonic() - started
        self._update_stage(name, {"state": "done", "seconds": seconds, "outputs": stage._outputs})

    def log(self, step: int, split: str, *, stage: str | None = None, **values: float) -> None:
        """Writes one metrics row per value. Numbers only: text of the data never reaches a run directory.

        step: the step within the stage; split: the data the value was computed on (train, dev, test, or run).
        """
        if not self.is_main:
            return
        now = time.time()
        stage = stage or (self._open[-1] if self._open else "run")
        row = {"stage": stage, "step": step, "split": split}
        numbers = {name: float(value) for name, value in values.items()}
        files.append_json_lines(
            self._metrics, [{**row, "name": name, "value": value, "time": now} for name, value in numbers.items()]
        )
        for listener in self.listeners:
            listener(step, split, numbers)
        self.beat()

    def rewind(self, stage: str, step: int) -> None:
        """Drops the metrics of `stage` after `step`, and a line that a kill has cut short."""
        if not self.is_main or not self._metrics.exists():
            return
        rows = files.read_json_lines(self._metrics)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        files.write_text(self._metrics, "".join(json.dumps(files.finite(row)) + "\n" for row in kept))

    def say(self, message: str) -> None:
        """A line for the user, on stderr and in run.log; never text of the data."""
        if self.is_main:
            logger.info("%s", message)

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the run directory (privacy.json)."""
        if self.is_main:
            files.write_json(self.directory / name, value)

    def finish(
        self,
        results: Sequence[Result],
        *,
        status: str = "done",
        notes: Sequence[str] = (),
        marks: Sequence[str] = (),
        items: tuple[int, int] | None = None,
    ) -> None:
        """Writes result.json and records the run as done.

        status: done; budget_reached when the privacy budget ended training before the last step; budget_exhausted when
            a budget of the language model ended asking. Then the results are of a part, the run counts as interrupted,
            and the same command goes on once the budget is raised.
        marks: what every reader of the results must be told in a word: subset, public-overlap.
        items: how many of how many a run with an exhausted budget has done.
        """
        if not self.is_main:
            return
        config = self.config
        rows = [asdict(result) | {"provenance": self._provenance()} for result in results]
        earlier = self._status.get("seconds", 0.0), self._status.get("cpu_seconds", 0.0)
        files.write_json(
            self.directory / "result.json",
            {
                "schema": SCHEMA,
                "task": config.task.name,
                "scale": config.scale,
                "status": status,
                "seed": config.seed,
                "run_hash": self._status["run_hash"],
                "cell_hash": self._status["cell_hash"],
                "seconds": earlier[0] + time.monotonic() - self._started,
                "cpu_seconds": earlier[1] + time.process_time() - self._cpu_started,
                "finished": time.time(),
                "rows": rows,
                "notes": list(notes),
                "marks": list(marks),
            },
        )
        if status == "budget_exhausted":
            reason = status if items is None else f"{status}: {items[0]}/{items[1]} items done"
            self.pause("interrupted", reason)
        else:
            self.update_status(state="done", reason=None if status == "done" else status, finished=time.time())

    def _provenance(self) -> str:
        """What every figure of this run is."""
        if OmegaConf.select(self.config, "privacy.audit.canaries", default="none") != "none":
            return "audited"  # canaries stand in place of training records
        if self.config.scale == "smoke":
            return "smoke"
        return "replayed" if OmegaConf.select(self.config, "llm.backend") == "replay" else "measured"

    def beat(self) -> None:
        """Shows that the run is alive, at most every few seconds (a monotonic clock: the wall clock may jump)."""
        if self.is_main and time.monotonic() - self._heartbeat > HEARTBEAT_SECONDS:
            self._heartbeat = time.monotonic()
            self.update_status()

    def update_status(self, **changes: Any) -> None:
        self._status.update(changes, heartbeat=time.time())
        files.write_json(self.directory / "status.json", self._status)

    def pause(self, state: str, reason: str) -> None:
        """Records why the run stopped before its end, and the time it has used so far."""
        if not self.is_main:
            return
        self.update_status(
            state=state,
            reason=reason,
            seconds=self._status.get("seconds", 0.0) + time.monotonic() - self._started,
            cpu_seconds=self._status.get("cpu_seconds", 0.0) + time.process_time() - self._cpu_started,
        )

    def close(self) -> None:
        """Leaves the world of processes, if one was joined."""
        if "accelerator" in self.__dict__:
            from privlm.training.accelerator import leave_world

            leave_world()

    def _is_finished(self, record: dict[str, Any] | None) -> bool:
        if record is None or record["state"] != "done":
            return False
        paths = {self.directory / name: digest for name, digest in record["outputs"].items()}
        return all(path.is_file() and files.sha256_file(path) == digest for path, digest in paths.items())

    def _update_stage(self, name: str, record: dict[str, Any]) -> None:
        self._status["stages"][name] = record
        if self.is_main:
            self.update_status()
