"""The folder of a sweep, runs/sweeps/<slug>-<hash>: sweep.json names its runs and the jobs that were submitted.

What became of a run stands in its own directory alone. The same runs are the same sweep, whoever works on it and how.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privlm import files, identity, rundir
from privlm.errors import BusyError, UsageError
from privlm.sweeps.schema import SlurmConfig, SweepConfig

SCHEMA = 1
FILE = "sweep.json"
FOLDER = "sweeps"
JOBS = "slurm"
"""Subfolder of a sweep for what jobs of SLURM read and print."""


@dataclass(frozen=True)
class Member:
    """A run of a sweep. problem: why it could not be queued."""

    directory: Path
    overrides: tuple[str, ...]
    run_hash: str
    problem: str | None = None

    @property
    def name(self) -> str:
        return self.directory.name


@dataclass
class Batch:
    """Runs that were submitted together, as an array. name: of the job. job: its id, None until sbatch has answered."""

    name: str
    runs: list[str]
    job: str | None = None
    submitted: float = field(default_factory=time.time)


@dataclass
class Sweep:
    """command: as it was typed, secrets masked. launcher: None for workers of this machine."""

    folder: Path
    command: str
    members: list[Member]
    settings: SweepConfig
    launcher: SlurmConfig | None = None
    batches: list[Batch] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    def write(self) -> None:
        """The caller holds the sweep. Raises UsageError where the folder cannot be written."""
        content = {
            "schema": SCHEMA,
            "created": self.created,
            "command": self.command,
            "settings": asdict(self.settings),
            "launcher": None if self.launcher is None else asdict(self.launcher),
            "runs": [asdict(member) | {"directory": str(member.directory)} for member in self.members],
            "batches": [asdict(batch) for batch in self.batches],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(self.folder / FILE, content)
        except OSError as error:
            raise UsageError(f"cannot write the sweep {self.folder}: {error.strerror}; set runs=FOLDER") from error

    def log_of(self, member: Member) -> Path:
        """What a worker of this machine prints, where several work at a time."""
        return self.folder / "logs" / f"{member.name}.log"

    @contextlib.contextmanager
    def held(self, on_busy: Callable[[BusyError], None] | None = None) -> Iterator[None]:
        """One process at a time works on a sweep, or writes sweep.json, and knows what others have submitted before.
        See privlm.rundir.locked.
        """
        with rundir.locked(self.folder, on_busy):
            self.batches = _batches(self.folder)
            yield

    def holder(self) -> str | None:
        """`process N on HOST` that works on the sweep now, None where nobody does."""
        return rundir.holder(self.folder)


def new(
    runs_folder: Path,
    members: Sequence[Member],
    command: str,
    settings: SweepConfig,
    launcher: SlurmConfig | None,
    title: str,
) -> Sweep:
    """The sweep of these runs; one that is there keeps the jobs that it has submitted."""
    digest = identity.digest(sorted(member.run_hash for member in members))
    folder = runs_folder.expanduser().absolute() / FOLDER / f"{identity.readable(title)}-{digest[:8]}"
    return Sweep(folder, command, list(members), settings, launcher, _batches(folder))


def _batches(folder: Path) -> list[Batch]:
    """What was submitted of a sweep; where sweep.json is damaged, by what was written for the jobs."""
    if not (folder / FILE).exists():
        return []
    try:
        return read(folder).batches
    except UsageError:
        written = sorted((folder / JOBS).glob("*.json"), key=lambda path: path.stat().st_mtime)
        runs = [[Path(run).name for run in files.read_json(path)["runs"]] for path in written]
        return [Batch(path.stem, names) for path, names in zip(written, runs, strict=True)]


def read(folder: Path) -> Sweep:
    """The sweep in `folder`. Raises UsageError for what is none, is damaged, or was written by a newer PrivLM."""
    try:
        content: dict[str, Any] | None = files.read_json(folder / FILE)
    except files.DamagedFileError as damage:
        raise UsageError(
            f"{folder / FILE}: {damage.reason}; the command that made the sweep writes it again, and runs no run twice"
        ) from damage
    if content is None:
        raise UsageError(f"{folder} is not a sweep: it holds no {FILE} (privlm status lists the sweeps)")
    if content["schema"] > SCHEMA:
        raise UsageError(f"{folder / FILE} has schema {content['schema']}, this PrivLM reads up to {SCHEMA}: update it")
    return Sweep(
        folder=folder,
        command=content["command"],
        members=[
            Member(Path(run["directory"]), tuple(run["overrides"]), run["run_hash"], run["problem"])
            for run in content["runs"]
        ],
        settings=SweepConfig(**content["settings"]),
        launcher=None if content["launcher"] is None else SlurmConfig(**content["launcher"]),
        batches=[Batch(**batch) for batch in content["batches"]],
        created=content["created"],
    )


def find(word: str, runs_folder: Path) -> Sweep:
    """The sweep that `word` names: a path, or a unique part of the name of a folder in `runs_folder`/sweeps.

    Raises UsageError where there is none, or several.
    """
    if Path(word).is_dir():
        return read(Path(word).absolute())
    names = [folder.name for folder in folders(runs_folder)]
    found = [name for name in names if name == word] or [name for name in names if word in name]
    if len(found) != 1:
        known = f"the sweeps there are {', '.join(names)}" if names else f"there is none in {runs_folder / FOLDER}"
        raise UsageError(f"'{word}' names {len(found) or 'no'} sweep{'s' * (len(found) > 1)}; {known}")
    return read(runs_folder.absolute() / FOLDER / found[0])


def folders(runs_folder: Path) -> list[Path]:
    """Of all sweeps, the newest last."""
    found = [path.parent for path in (runs_folder / FOLDER).glob(f"*/{FILE}")]
    return sorted(found, key=lambda folder: (folder / FILE).stat().st_mtime)
