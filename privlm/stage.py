"""A stage: a unit of work inside a run, with its own files, seeds, reports and progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf

from privlm import files, identity, rundir
from privlm.errors import UsageError
from privlm.privacy import keyed_random
from privlm.privacy.schema import PrivacyConfig
from privlm.results import Measured, Result
from privlm.schema import defaults

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from omegaconf import DictConfig

    from privlm.privacy.ledger import Ledger
    from privlm.training.canaries import Canaries

Item = TypeVar("Item")
Row = dict[str, Any]
Keep = Callable[[str, Mapping[str, Any]], None]
"""keep(item, fields): what `Stage.rows` hands to its `answer`."""

PICTURES = "pictures"


class Stage:
    """A unit of work inside a run, with its own files, seeds and progress.

    needed: False when an earlier try of this run has finished the stage and its outputs are as they were left. Then
        reports and logs are those of before, and what the body reports again is not heard.
    folder: for its files. checkpoints: for those of training. job: the privlm.job.Job that has opened it.
    """

    def __init__(self, job: Any, name: str, needed: bool) -> None:
        self.job = job
        self.name = name
        self.needed = needed
        self.config = job.config
        self._outputs: dict[str, str] = {}
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
        from privlm.job import Job

        config = _library_config(trainer, privacy, seed)
        digest = identity.digest(OmegaConf.to_container(config))
        with rundir.locked(folder):
            earlier = files.read_json(folder / "status.json")
            if earlier is not None and earlier["run_hash"] != digest:
                raise UsageError(f"{folder} holds a stage of other settings: give another folder, or remove it")
            rundir.create(folder, config, [], run_hash=digest, cell_hash=digest, roles=identity.Roles(), inputs={})
            job = Job(folder)
            try:
                with job.stage(name) as stage:
                    yield stage
            except BaseException as error:
                job.pause("interrupted", type(error).__name__)
                raise
            job.finish()

    @classmethod
    @contextlib.contextmanager
    def in_memory(cls, *, trainer: Any, privacy: Any = None, seed: int = 0, name: str = "train") -> Iterator[Stage]:
        """A stage for library users that leaves nothing behind: no checkpoints, no saved model, a ledger in memory."""
        from privlm.job import Job

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
        labels = sorted((series or {}).items())
        return keyed_random.key_bits("stage", self.config.seed, self.name, repr(labels)) >> 65

    def ledger(self) -> Ledger:
        """What the releases of this stage enter: the part of the run's one ledger that is its own."""
        return self.job.ledger.of(self.name)

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
        answer: Callable[[Mapping[str, Item], Keep], None],
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
            file.parent.mkdir(parents=True, exist_ok=True)
            files.cut_torn_line(file)
            done = {line["item"] for line in files.read_json_lines(file)} & set(items)
            title = f"{self.name}: {file.stem}" if file.stem != self.name else self.name
            with self.job.progress(title, len(items), start=len(done), interruptible=interruptible) as tick:

                def keep(item: str, fields: Mapping[str, Any]) -> None:
                    files.append_durably(file, [{"item": item, **fields}])
                    done.add(item)
                    self.job.records.beat()
                    tick(len(done))

                if len(done) < len(items):
                    answer({name: item for name, item in items.items() if name not in done}, keep)
            if file.exists():
                self.output(file)
        self.job.wait_for_everyone()
        found = {line["item"]: line for line in files.read_json_lines(file)}
        return [found[name] for name in items if name in found]

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

    def record(self, seconds: float) -> Row:
        """What status.json keeps of the stage."""
        return {
            "state": "done" if self._stopped is None else "stopped",
            "seconds": seconds,
            "outputs": self._outputs,
            "ended": self._ended,
            "stopped": self._stopped,
            "reports": [asdict(result) for result in self._reports],
        }


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
