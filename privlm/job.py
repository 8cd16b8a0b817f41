"""One run: its stages, what they report, and its end. A runner receives a Job and its Stages besides its config.

A Job makes the promise that a run can be killed at any moment and is finished by the same command: finished stages are
skipped and their reports read back, the running one goes on from its own progress.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from privlm import files, rundir
from privlm.progress import progress
from privlm.records import METRIC_FIELDS, Records
from privlm.signals import Interrupted, StopFlag
from privlm.stage import Row, Stage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from omegaconf import DictConfig

    from privlm.privacy.ledger import Ledger
    from privlm.privacy.plan import PrivacyPlan

logger = logging.getLogger("privlm")

Listener = Callable[[str, int, str, Mapping[str, Any], Mapping[str, float]], None]
"""listener(stage, step, split, series, values): told each metrics row."""

LEDGER = "privacy_ledger.jsonl"


class StoppedAfter(Exception):
    """`task.until` named the stage that has just ended."""


class Job:
    """A run in its directory. Only the process of rank 0 writes; the others see the same stages.

    directory: holds config.yaml, written by `privlm.rundir.create`; None: in memory, with `config`.
    """

    def __init__(self, directory: Path | None, rank: int = 0, *, config: DictConfig | None = None) -> None:
        self._directory = directory
        self.rank = rank
        self.config: Any = config
        if directory is not None:
            self.config = OmegaConf.load(directory / "config.yaml")
        OmegaConf.set_readonly(self.config, True)
        self.stop = StopFlag()
        self.listeners: list[Listener] = []
        self.records = Records(directory, writes=self.is_main)
        self._notes: list[str] = []
        self._marks: list[str] = []
        self._opened: list[str] = []  # stages of this try, in their order
        self._temporary: list[str] = []
        self.private_stages: dict[str, tuple[PrivacyPlan, int]] = {}  # its plan and its steps so far, by `fit`
        self.public_stages: list[str] = []

    @property
    def directory(self) -> Path:
        """Raises ValueError for a run in memory, which has none."""
        if self._directory is None:
            raise ValueError("this run is kept in memory: it has no files")
        return self._directory

    @property
    def is_kept(self) -> bool:
        """False for a run in memory."""
        return self._directory is not None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def run_hash(self) -> str:
        return self.records.status["run_hash"]

    @property
    def marks(self) -> list[str]:
        return self._marks

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes of this run; made once, its world verified."""
        from privlm.training.accelerator import make_accelerator

        return make_accelerator(self.config.trainer)

    @cached_property
    def ledger(self) -> Ledger:
        """The account of all releases of the run; empty in the processes that are not the main one."""
        from privlm.privacy.ledger import Ledger

        return Ledger(self.directory / LEDGER if self.is_main and self.is_kept else None)

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
    def stage(self, name: str, *, temporary: bool = False) -> Iterator[Stage]:
        """A named unit of work; what costs time in its body asks `stage.needed` first, as `fit` and `rows` do.

        temporary: its outputs are a function of the run's inputs alone (features of private texts, say): they are made
            again where they are missing, which leaves later stages as they are, and removed when the run is done.
        """
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", name), f"a stage's name is part of a path: {name!r}"
        assert name not in self._opened, f"stage {name} has been opened already"
        stage = Stage(self, name, needed=self._decide(lambda: self._is_needed(name)))
        self._opened.append(name)
        self._temporary += [name] * temporary
        if stage.needed:
            with self._working(stage, temporary):
                yield stage
        else:
            yield stage
        if name == OmegaConf.select(self.config, "task.until"):
            raise StoppedAfter(name)

    @contextlib.contextmanager
    def _working(self, stage: Stage, temporary: bool) -> Iterator[None]:
        if not temporary:
            record = self.records.stage(stage.name)
            if record is not None and record["state"] == "done":
                logger.warning("the outputs of stage %s have changed since it finished: it is done again", stage.name)
            self._forget_after(stage.name)
        if not self.is_kept or not stage.checkpoints.exists():
            stage.rewind(-1)
        started = time.monotonic()
        self.records.set_stage(stage.name, {"state": "running", "seconds": None, "outputs": {}})
        yield
        self.records.set_stage(stage.name, stage.record(time.monotonic() - started))

    def log(self, stage: str, step: int, split: str, series: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """See Stage.log."""
        if not self.is_main:
            return
        assert not METRIC_FIELDS & set(series), "the names of a series are no names of metrics.jsonl's own"
        now = time.time()
        place = {"stage": stage, "step": step, "split": split, **series}
        numbers = {name: float(value) for name, value in values.items()}
        self.records.append_metrics(
            [{**place, "name": name, "value": value, "time": now} for name, value in numbers.items()]
        )
        for listener in self.listeners:
            listener(stage, step, split, series, numbers)
        self.records.beat()

    def say(self, message: str) -> None:
        """A line for the user, on stderr and in run.log; never text of the data."""
        if self.is_main:
            logger.info("%s", message)

    def note(self, *notes: str) -> None:
        """Sentences about the data and the run that stand below its results."""
        self._notes += notes

    def mark(self, *marks: str) -> None:
        """What every reader of the results must be told in a word: subset, public-overlap."""
        self._marks += marks

    def trains_without_privacy(self, stage: str) -> None:
        """Told by `fit`: privacy.json then says so, and the statement of a private run names the stage."""
        self.public_stages.append(stage)
        if self.records.read_json("privacy.json") == {"mechanism": "none", "trains": False}:
            self.records.write_json("privacy.json", {"mechanism": "none"})

    def finish(self) -> None:
        """Writes result.json from the reports of the stages, and records the run as done.

        A stage that has stopped leaves the run interrupted, its results those of a part: the same command goes on.
        """
        if not self.is_main:
            return
        if (until := OmegaConf.select(self.config, "task.until")) is not None:  # else the run would have stopped there
            self.say(f"warning: task.until={until} named no stage of this run ({', '.join(self._opened)})")
        stages = [self.records.status["stages"][name] for name in self._opened]
        stopped = next((stage["stopped"] for stage in stages if stage.get("stopped")), None)
        ended = next((stage["ended"] for stage in stages if stage.get("ended", "done") != "done"), "done")
        status = stopped["reason"] if stopped else ended
        rows = [row | {"provenance": self._provenance()} for stage in stages for row in stage.get("reports", ())]
        self.records.write_json("result.json", self._result(status, rows + self._price()))
        if stopped:
            self.pause("interrupted", f"{status}: {stopped['done']}/{stopped['total']} items done")
        else:
            self._remove_temporary()
            self.records.update(state="done", reason=None if status == "done" else status, finished=time.time())

    def _remove_temporary(self) -> None:
        if self.is_kept:
            for name in self._temporary:
                files.remove(self.directory / "stages" / name)

    def _result(self, status: str, rows: list[Row]) -> Row:
        config = self.config
        known = self.records.status
        return {
            "schema": rundir.SCHEMA,
            "task": config.task.name,
            "scale": config.scale,
            "status": status,
            "seed": config.seed,
            "run_hash": known["run_hash"],
            "cell_hash": known["cell_hash"],
            **self.records.used(),
            "finished": time.time(),
            "rows": rows,
            "notes": self._notes,
            "marks": self._marks,
        }

    def _price(self) -> list[Row]:
        """What all private stages together have spent."""
        privacy = self.records.read_json("privacy.json")
        if privacy is None or privacy["mechanism"] == "none":
            return []
        from privlm.privacy.plan import price_rows

        return [asdict(row) | {"provenance": self._provenance()} for row in price_rows(privacy)]

    def _provenance(self) -> str:
        """What every figure of this run is."""
        if OmegaConf.select(self.config, "privacy.audit.canaries", default="none") != "none":
            return "audited"  # canaries stand in place of training records
        if self.config.scale == "smoke":
            return "smoke"
        return "replayed" if OmegaConf.select(self.config, "llm.backend") == "replay" else "measured"

    def pause(self, state: str, reason: str) -> None:
        """Records why the run stopped before its end, and the time it has used so far."""
        if self.is_main:
            self.records.update(state=state, reason=reason, **self.records.used())

    def wait_for_everyone(self) -> None:
        """A point that all processes of the run reach before one goes on."""
        if self._num_processes > 1:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leaves the world of processes, if one was joined."""
        if "accelerator" in self.__dict__:
            from privlm.training.accelerator import leave_world

            leave_world()

    @property
    def _num_processes(self) -> int:
        return OmegaConf.select(self.config, "trainer.processes", default=1)

    def _decide(self, question: Callable[[], bool]) -> bool:
        """The main process's answer, in all processes: they must take the same way."""
        if self._num_processes == 1:
            return question()
        from accelerate.utils import broadcast_object_list

        assert self.accelerator is not None  # joins the world
        return broadcast_object_list([question() if self.is_main else None])[0]

    def _is_needed(self, name: str) -> bool:
        record = self.records.stage(name)
        if record is None or record["state"] != "done":
            return True
        if not self.is_kept:
            return False
        paths = {self.directory / path: digest for path, digest in record["outputs"].items()}
        return not all(path.is_file() and files.sha256_file(path) == digest for path, digest in paths.items())

    def _forget_after(self, name: str) -> None:
        """Later stages were made from what this one is about to make again."""
        later = [stage for stage in self.records.stages_after(name) if stage not in self._opened]
        if not later:
            return
        for stage in later:
            self.records.drop_metrics(stage, -1)
            if self.is_main and self.is_kept:
                for folder in ("stages", "checkpoints"):
                    files.remove(self.directory / folder / stage)
        self.records.forget_stages(later)
