"""One run and its stages: the only objects that a runner receives besides its config.

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

from privlm import files, identity, leftovers, rows, rundir
from privlm.errors import PrivLMError, UsageError
from privlm.masking import mask_text
from privlm.privacy import keyed_random
from privlm.privacy.ledger_paths import LEDGER, client_ledger, kept_accounts
from privlm.privacy.run_account import KEY, KEYS, resumable
from privlm.privacy.schema import PrivacyConfig
from privlm.progress import progress
from privlm.records import METRIC_FIELDS, Records
from privlm.results import Measured, Result, content
from privlm.rows import Item, Row
from privlm.schema import defaults
from privlm.signals import Interrupted, StopFlag
from privlm.world import World

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.figure import Figure
    from omegaconf import DictConfig

    from privlm.privacy.ledger import Ledger
    from privlm.privacy.price import Price
    from privlm.training.canaries import Canaries

logger = logging.getLogger("privlm")

Listener = Callable[[str, int, str, Mapping[str, Any], Mapping[str, float]], None]
"""listener(stage, step, split, series, values): told each metrics row."""

PICTURES = "pictures"
SEALED_BY_RESULT = ("config.yaml", "metrics.jsonl")
"""Files that hold no digest of their own: result.json has it."""


def stage_seed(seed: int, stage: str, series: Mapping[str, Any] | None = None) -> int:
    """Stage.seed, from the run's seed and the name of the stage."""
    return keyed_random.key_bits("stage", seed, stage, repr(sorted((series or {}).items()))) >> 65


class StoppedAfter(Exception):
    """`task.until` named the stage that has just ended."""


class Stage:
    """A unit of work inside a run, with its own files, seeds and progress.

    needed: False when an earlier try of this run has finished the stage and its outputs are as they were left. Then
        reports and logs are those of before, and what the body reports again is not heard.
    folder: for its files. checkpoints: for those of training.
    """

    def __init__(self, job: Job, name: str, needed: bool) -> None:
        self.job = job
        self.name = name
        self.needed = needed
        self.config = job.config
        self._outputs: dict[str, str] = {}
        self._discard: list[str] = []
        self._reports: list[Result] = []
        self._ended = "done"
        self._stopped: Row | None = None

    @classmethod
    @contextlib.contextmanager
    def at(
        cls, folder: Path, *, trainer: Any, privacy: Any = None, seed: int = 0, name: str = "train"
    ) -> Iterator[Stage]:
        """A stage for library users, kept in `folder`, which `privlm show` reads as well: the same call resumes it.

        trainer, privacy: a TrainerConfig and a PrivacyConfig, None for no privacy.

        Raises UsageError where the folder holds a stage of other settings.
        """
        config = _library_config(trainer, privacy, seed)
        digest = identity.digest(OmegaConf.to_container(config))
        with rundir.locked(folder):
            earlier = files.read_json(folder / "status.json")
            if earlier is not None and earlier["run_hash"] != digest:
                raise UsageError(f"{folder} holds a stage of other settings: give another folder, or remove it")
            resumable(folder)
            rundir.create(folder, config, [], run_hash=digest, cell_hash=digest, roles=identity.Roles(), inputs={})
            job = Job(folder)
            try:
                with job.stage(name) as stage:
                    yield stage
                job.finish()
            except BaseException as error:
                job.pause("interrupted", type(error).__name__)
                raise
            finally:
                job.close()

    @classmethod
    @contextlib.contextmanager
    def in_memory(cls, *, trainer: Any, privacy: Any = None, seed: int = 0, name: str = "train") -> Iterator[Stage]:
        """A stage for library users that leaves nothing behind: no checkpoints, no saved model, a ledger in memory."""
        with Job(None, config=_library_config(trainer, privacy, seed)).stage(name) as stage:
            yield stage

    @property
    def folder(self) -> Path:
        folder = self.job.directory / "stages" / self.name
        if self.job.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def checkpoints(self) -> Path:
        return self.job.directory / "checkpoints" / self.name

    @property
    def is_kept(self) -> bool:
        """False for a stage in memory, which has no files."""
        return self.job.is_kept

    def seed(self, series: Mapping[str, Any] | None = None) -> int:
        """63 bits that are a function of the run's seed, the stage's name and the series ({"client": 3}): no two
        stages, and no two clients, draw the same batches, dropout or noise.
        """
        return stage_seed(self.config.seed, self.name, series)

    def ledger(self) -> Ledger:
        """What the releases of this stage enter: the part of the run's one ledger that is its own."""
        return self.job.ledger.of(self.name)

    def client_ledger(self, client: str, *, first_step: int = 0) -> Ledger:
        """What the releases of a client enter that adds noise of its own, as this stage sees them: one file for each
        client, which another process may write while this one only reads.

        first_step: steps of the client in the rounds before; a Trainer counts from 1 in each round.
        """
        return self.job.client_ledger(client).of(self.name, client, first_step=first_step)

    def canaries(self) -> Canaries | None:
        """What an audited run hands to its Trainer; None for an ordinary run."""
        from privlm.training.canaries import make_canaries

        privacy = self.config.privacy
        folder = self.folder / "audit" if self.is_kept and self.job.is_main else None
        return make_canaries(privacy.audit, clipping_norm=privacy.clipping_norm, folder=folder)

    def output(self, *paths: Path) -> None:
        """Records finished files of this stage by their content, so that a resumed run can trust them."""
        for path in paths:
            self._outputs[str(path.relative_to(self.job.directory))] = files.sha256_file(path)

    def discard(self, path: Path) -> None:
        """Names what is made of private data and of no use when the run is done: it goes then."""
        if self.is_kept:
            self._discard.append(str(path.relative_to(self.job.directory)))

    def log(self, step: int, split: str, series: Mapping[str, Any] | None = None, **values: float) -> None:
        """Writes one metrics row per value. Numbers only: text of the data never reaches a run directory.

        step: within the stage. split: the data that the value was computed on (train, dev, test, or run).
        series: tells apart what shares a name and a split: {"client": 3}.
        """
        if self.needed:
            self.job.log(self.name, step, split, series or {}, values)

    def rewind(self, step: int) -> None:
        """Forgets this stage's metrics after `step`: they belong to steps that will be taken again."""
        self.job.records.drop_metrics(self.name, step)

    def report(
        self,
        *results: Result,
        split: str | None = None,
        unit: str = "fraction",
        n: int | None = None,
        **numbers: float | Measured,
    ) -> None:
        """Rows of result.json: ready ones, or numbers and estimates by their names.

        n: sample size behind plain numbers; estimates bring their own.
        """
        self._reports += results
        self._reports += [Result.of(name, number, unit=unit, split=split, n=n) for name, number in numbers.items()]

    def rows(
        self,
        path: str,
        items: Mapping[str, Item],
        answer: rows.Answer[Item],
        *,
        interruptible: bool = True,
    ) -> list[Row]:
        """Answers to `items`, kept as JSON lines in `path` of the stage's folder; each is on disk as soon as it comes.

        items: id -> what is asked. answer(open, keep): works on the items that no earlier try has answered, and calls
            keep(id, fields) for each, in any order; an item that it keeps nothing of stays open.
        interruptible: a request to stop is honoured between two items; False where `answer` honours it itself.

        Returns the lines {"item": id, **fields} in the order of `items`, those of earlier tries included.
        """
        file = self.folder / path
        if self.job.is_main and self.needed:
            title = f"{self.name}: {file.stem}" if file.stem != self.name else self.name
            start = len(rows.answered(file, items))
            with self.job.progress(title, len(items), start=start, interruptible=interruptible) as show:

                def tick(done: int) -> None:
                    self.job.records.beat()
                    show(done)

                rows.answer_open(file, items, answer, tick)
            if file.exists():
                self.output(file)
        self.job.wait_for_everyone()
        return list(rows.answered(file, items).values())

    def picture(self, name: str, figure: Figure) -> None:
        """Keeps a matplotlib figure as a PNG that the page of the run shows, titled by its name."""
        if not (self.job.is_main and self.is_kept and self.needed):
            return
        path = self.job.directory / PICTURES / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        files.write_file(path, lambda file: figure.savefig(file, format="png", metadata={"Software": None}))

    def ended(self, status: str) -> None:
        """The work has ended, but not as planned: budget_reached (of privacy), early_stop. The stage is done."""
        self._ended = status

    def stop(self, reason: str, done: int, total: int) -> None:
        """Asking has ended early (`budget_exhausted`): the stage stays undone, what it reports is of a part.

        done, total: items of the run.
        """
        self._stopped = {"reason": reason, "done": done, "total": total}

    def record(self, seconds: float | None) -> Row:
        """What status.json keeps of the stage."""
        return {
            "state": "done" if self._stopped is None else "stopped",
            "seconds": seconds,
            "outputs": self._outputs,
            "discard": self._discard,
            "ended": self._ended,
            "stopped": self._stopped,
            "reports": [asdict(result) for result in self._reports],
        }


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
        self.world = World(self.config, rank)
        self.stop = StopFlag(is_alone=self.world.size == 1)
        self.listeners: list[Listener] = []
        self.records = Records(directory, writes=self.is_main)
        self._notes: list[str] = []
        self._marks: list[str] = []
        self._opened: list[str] = []  # stages of this try, in their order
        self._client_ledgers: dict[str, Ledger] = {}

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
    def ledger(self) -> Ledger:
        """The account of all releases of the run; empty in the processes that are not the main one."""
        from privlm.privacy.ledger import Ledger

        return Ledger(self.directory / LEDGER if self.is_main and self.is_kept else None)

    def client_ledger(self, client: str) -> Ledger:
        """The account of one client of a federated run; empty in the processes that are not the main one."""
        from privlm.privacy.ledger import Ledger

        if client not in self._client_ledgers:
            path = client_ledger(self.directory, client) if self.is_main and self.is_kept else None
            self._client_ledgers[client] = Ledger(path)
        return self._client_ledgers[client]

    @cached_property
    def price(self) -> Price:
        """Of the private stages, as `fit` tells them."""
        from privlm.privacy.price import Price

        return Price(kept_accounts(self.directory), self.directory) if self.is_kept else Price()

    @property
    def _is_priced(self) -> bool:
        """Whether a private stage was begun; a run without one imports no accountant."""
        return "price" in self.__dict__ and bool(self.price.stages)

    def tell_price(self, *, quick: bool = False) -> None:
        """Writes into privacy.json what the private stages have spent so far."""
        if self.is_main and self._is_priced:
            self.records.write_json("privacy.json", self.price.so_far(self.ledger, self._flags(), quick=quick))

    def _flags(self) -> list[str]:
        from privlm.privacy.price import flags

        return flags(self.config, public_stages=self.price.public, marks=self.marks)

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
            again where they are missing, which leaves later stages as they are, and removed before the run is done.
        """
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", name), f"a stage's name is part of a path: {name!r}"
        assert name not in self._opened, f"stage {name} has been opened already"
        stage = Stage(self, name, needed=self.world.decide(lambda: not self.records.is_finished(name)))
        self._opened.append(name)
        if temporary and self.is_kept:
            stage.discard(self.directory / "stages" / name)
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
            self.records.forget_after(stage.name, keep=self._opened)
        if not self.is_kept or not stage.checkpoints.exists():
            stage.rewind(-1)
        started = time.monotonic()
        self.records.set_stage(stage.name, stage.record(None) | {"state": "running"})
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
        self.price.public.append(stage)
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
        price, heads = self._price(is_final=stopped is None)
        found = [row for stage in stages for row in stage.get("reports", ())] + price
        said = {"notes": self._notes, "marks": self._marks}
        result = content(self.config, self.records, status=status, rows=found, heads=heads, **said)
        if not stopped:  # before the result, which may be all that a kill lets come after it
            self._remove_leftovers()
        self.records.write_json("result.json", result | self._digests())
        if stopped:
            self.pause("interrupted", f"{status}: {stopped['done']}/{stopped['total']} items done")
        else:
            self.records.update(state="done", reason=None if status == "done" else status, finished=time.time())

    def _remove_leftovers(self) -> None:
        """What is made of private data and of no more use."""
        if self.is_kept:
            leftovers.remove(self.directory, self.records.status | {"state": "done"})

    def _digests(self) -> dict[str, dict[str, str]]:
        """Of files that readers of the result read beside it."""
        paths = [self.directory / name for name in SEALED_BY_RESULT] if self.is_kept else []
        return {"files": {path.name: files.sha256_file(path) for path in paths if path.exists()}}

    def _price(self, *, is_final: bool) -> tuple[list[Row], Row]:
        """What all private stages together have spent, as rows of result.json, and the heads of the ledgers that say
        so; privacy.json says the same where the run has come to its end.
        """
        if not self._is_priced:
            return [], {}
        from privlm.privacy.account import price_rows

        privacy = self.price.final(self.ledger, self._flags())
        if is_final:
            self.records.write_json("privacy.json", privacy)
        heads = {key: privacy[key] for key in (KEY, KEYS) if key in privacy}
        return [asdict(row) for row in price_rows(privacy)], heads

    @property
    def accelerator(self) -> Accelerator:
        """Device, precision and processes of this run; made once, its world verified."""
        return self.world.accelerator

    def wait_for_everyone(self) -> None:
        """A point that all processes of the run reach before one goes on."""
        self.world.wait()

    def pause(self, state: str, reason: str) -> None:
        """Records why the run stopped before its end, the time it has used so far, and what it has spent."""
        if self.is_main:
            self.records.update(state=state, reason=mask_text(reason), **self.records.used())
            with contextlib.suppress(OSError, PrivLMError):  # the state is kept; readers ask the ledger
                self.tell_price()

    def close(self) -> None:
        """Lets others write the run's ledgers."""
        own = [self.ledger] if "ledger" in self.__dict__ else []
        for ledger in (*own, *self._client_ledgers.values()):
            ledger.close()


def _library_config(trainer: Any, privacy: Any, seed: int) -> DictConfig:
    privacy = privacy or defaults(PrivacyConfig, "privacy", "none")
    return OmegaConf.create(
        {
            "scale": "small",
            "seed": seed,
            "task": {"name": "library"},
            "privacy": OmegaConf.structured(privacy),
            "trainer": OmegaConf.structured(trainer),
        }
    )
