"""The results store: run directories read as they lie.

There is no database. A run without a result, a damaged file or a run that died is a fact to report, not a reason to
stop; only a file of a newer schema is refused by name, since guessing what it means could print a wrong figure.
"""

from __future__ import annotations

import difflib
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from privlm import files
from privlm.content import OWN, Content, of_paths, own
from privlm.errors import UsageError
from privlm.identity import RULES, Roles, cell_hash, roles_of
from privlm.masking import mask_secrets
from privlm.records import METRIC_FIELDS
from privlm.report.resolved import read_config
from privlm.report.told import told
from privlm.results import Result

SCHEMA = 1
"""Newest schema of status.json and result.json that is understood here."""

RUN_MARKERS = frozenset({"status.json", "result.json"})
SILENT_AFTER = 300.0
"""Seconds without a heartbeat after which a running run is called silent."""


@dataclass(frozen=True)
class Metric:
    """One point of metrics.jsonl. `series` tells apart what shares a name and a split (client, round, domain)."""

    stage: str
    step: int
    split: str
    name: str
    value: float
    series: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One run directory. Small files are read at once, the others when first asked for.

    problems: files that exist but could not be read, one sentence each; they count as absent.
    """

    path: Path
    status: dict[str, Any]
    result: dict[str, Any] | None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def state(self) -> str:
        """running, done, failed or interrupted; unknown without a readable status.json."""
        return self.status.get("state", "unknown")

    @property
    def finished(self) -> bool:
        """Whether its result may be used: a failed run's rows are not a result, nor are those of a privacy ledger that
        does not add up, which `problems` then names.
        """
        if self.state != "done" or self.result is None:
            return False
        try:
            _ = self.privacy
        except UsageError as fault:
            if str(fault) not in self.problems:
                self.problems.append(str(fault))
            return False
        return True

    @property
    def run_hash(self) -> str:
        return self.status.get("run_hash") or (self.result or {}).get("run_hash", "")

    @property
    def roles(self) -> Roles:
        """Which keys of its configuration make no other run, or no other cell."""
        return roles_of(self.status)

    @cached_property
    def cell_hash(self) -> str:
        """Of its configuration as a run of today would have it, and of own data and weights; as noted at the time where
        config.yaml is lost, or where the result is of today's rules: it is sealed, and read anyway.
        """
        result = self.result or {}
        if self.state == "done" and result.get("hash_rules") == RULES:
            return result["cell_hash"]
        if self._content:
            return cell_hash(self._content, self.roles, own(self.contents))
        return self.status.get("cell_hash") or result.get("cell_hash", "")

    @cached_property
    def named_cell_hash(self) -> str:
        """The cell that its configuration names: its own, unless it read own data or weights."""
        if not own(self.contents):
            return self.cell_hash
        return cell_hash(self._content, self.roles) if self._content else self.cell_hash

    @cached_property
    def contents(self) -> dict[str, Content]:
        """What is behind the names of its data and weights, as far as it is known.

        A run that recorded none read what its configuration names, unless that names a path: then nobody knows, and
        they are own ones.
        """
        recorded = self.status.get("content", (self.result or {}).get("content"))
        if recorded is None:
            return of_paths(self.config, self.inputs)
        return {group: Content(**content) for group, content in recorded.items()}

    def name_of(self, group: str) -> str:
        """What to call its data, model or adapter: own data and weights have the name of their file or folder."""
        content = self.contents.get(group)
        return content.name if content is not None else (self.config.get(group) or {}).get("name", "unknown")

    @property
    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the run read (data, weights): name -> hexadecimal digest."""
        return self.status.get("inputs", {})

    @property
    def scale(self) -> str:
        return self.result["scale"] if self.result else self.config.get("scale", "unknown")

    @property
    def seed(self) -> int | None:
        return self.result["seed"] if self.result else self.config.get("seed")

    @property
    def task(self) -> str:
        return self.result["task"] if self.result else self.config.get("task", {}).get("name", "unknown")

    @cached_property
    def results(self) -> list[Result]:
        """The rows of result.json, and `audit_epsilon`, the lower bound that an audit of the run has found."""
        rows = [Result.from_json(row) for row in self.result["rows"]] if self.result else []
        if self.state != "done":  # the price of what was released then; the ledger knows that of now
            rows = [row for row in rows if not row.metric.startswith("epsilon")]
        if rows and self.audit:
            bound = float(self.audit["epsilon_lower_bound"])
            rows.append(Result("audit_epsilon", bound, "epsilon"))
        return rows

    @property
    def own_name(self) -> str:
        """The names of its own data and weights, '' where it has none."""
        return ", ".join(self.name_of(group) for group in own(self.contents))

    @cached_property
    def marks(self) -> list[str]:
        """What every reader of the results must be told in a word: own data, own weights, subset, public-overlap."""
        marks = [OWN[group] for group in own(self.contents) if group in OWN]
        return list(dict.fromkeys([*marks, *(self.result or {}).get("marks", [])]))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, secrets masked; {} where config.yaml is absent or damaged."""
        return mask_secrets(self._content)

    @cached_property
    def _content(self) -> dict[str, Any]:
        """What config.yaml holds, {} where it is absent or damaged."""
        try:
            self._require_sealed("config.yaml")
            config = read_config(self.path / "config.yaml")
        except FileNotFoundError:
            return {}
        except Exception as error:  # PyYAML and OmegaConf share no base class
            self.problems.append(f"config.yaml cannot be read: {_first_line(error)}")
            return {}
        return config if isinstance(config, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        """The words of the command line that gave the configuration."""
        try:
            return (self.path / "overrides.txt").read_text(encoding="utf-8").split("\n")[:-1]
        except FileNotFoundError:
            return []

    @cached_property
    def privacy(self) -> dict[str, Any] | None:
        """What may be told of its privacy: privlm.report.told. Raises UsageError where its ledger does not add up."""

        def mechanism() -> str:
            asked = self._content.get("privacy")
            return asked.get("mechanism", "none") if isinstance(asked, dict) else "none"

        privacy = _read_json(self.path / "privacy.json", self.problems)
        return told(self.path, privacy, is_done=self.state == "done", mechanism=mechanism)

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """What `privlm audit` has found; None for a run that has not been audited."""
        return _read_json(self.path / "audit.json", self.problems)

    @cached_property
    def canaries(self) -> str:
        """The kind of canaries that the run trained with: it is no result of its method unless `none`."""
        return self.config.get("privacy", {}).get("audit", {}).get("canaries", "none")

    @cached_property
    def env(self) -> dict[str, Any] | None:
        return _read_json(self.path / "env.json", self.problems)

    def metrics(self) -> list[Metric]:
        """All points in the order of the file. Steps redone after a resume count once, as last written."""
        try:
            self._require_sealed("metrics.jsonl")
            rows = files.read_json_lines(self.path / "metrics.jsonl")
        except ValueError as error:
            self.problems.append(f"metrics.jsonl cannot be read: {_first_line(error)}")
            return []
        points: dict[tuple[Any, ...], Metric] = {}
        for row in rows:
            series = tuple((key, label) for key, label in row.items() if key not in METRIC_FIELDS)
            point = Metric(row["stage"], row["step"], row["split"], row["name"], float(row["value"]), series)
            points[point.stage, point.step, point.split, point.name, series] = point
        return list(points.values())

    def _require_sealed(self, name: str) -> None:
        """Raises ValueError where a file of a finished run is not the one that its result knows, if it knows one."""
        digest = (self.result or {}).get("files", {}).get(name)
        if self.state == "done" and digest is not None and files.sha256_file(self.path / name) != digest:
            raise ValueError("it is not what was written; restore it from a copy, or make the run again with --force")

    def files(self) -> list[tuple[str, int]]:
        """Relative path and size in bytes of every file, sorted by path; hidden files are the runner's own."""
        found = []
        for folder, _, names in os.walk(self.path):
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file():
                    found.append((path.relative_to(self.path).as_posix(), path.stat().st_size))
        return sorted(found)


@dataclass(frozen=True)
class Store:
    """The runs below a folder, sorted by path, and a warning for each directory that could not be used."""

    root: Path
    runs: list[RunRecord]
    skipped: list[str]


def read_run(path: Path) -> RunRecord:
    """The run in directory `path`. Raises UsageError if it is no run directory or was written by a newer PrivLM."""
    problems: list[str] = []
    status = _read_json(path / "status.json", problems)
    result = _read_json(path / "result.json", problems)
    if status is None and result is None and not problems:
        raise UsageError(f"{path} is not a run directory: it holds neither status.json nor result.json")
    return RunRecord(path, status or {}, result, problems)


def find_runs(root: Path) -> Store:
    """All runs at or below `root`, each once, whatever links lead to it. A missing folder is an empty store."""
    runs: list[RunRecord] = []
    skipped: list[str] = []
    visited: set[tuple[int, int]] = set()
    pending = [root] if root.is_dir() else []
    while pending:
        folder = pending.pop()
        try:
            identity = folder.stat()
            if (identity.st_dev, identity.st_ino) in visited:
                continue
            visited.add((identity.st_dev, identity.st_ino))
            names = sorted(entry.name for entry in os.scandir(folder))
            if RUN_MARKERS.intersection(names):
                runs.append(read_run(folder))
            else:
                pending += [folder / name for name in names if os.path.isdir(folder / name)]
        except (OSError, UsageError) as error:
            skipped.append(f"skipped {folder}: {_first_line(error)}")
    return Store(root, sorted(runs, key=lambda run: str(run.path)), sorted(skipped))


def without_copies(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Each run once, however often its directory was copied: the same run with the same results."""
    found = {f"{run.run_hash or run.path} {(run.result or {}).get('rows')}": run for run in reversed(list(runs))}
    return list(found.values())[::-1]


def one_a_seed(runs: Iterable[RunRecord]) -> list[RunRecord]:
    """Of runs of one cell the newest finished one of each seed, in the order of the seeds: a seed that was run again is
    no further seed. A seed without a finished run keeps all that it has.
    """
    by_seed: dict[Any, list[RunRecord]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run)
    kept = []
    for seed in sorted(by_seed, key=lambda seed: (seed is None, seed)):
        finished = sorted((run for run in by_seed[seed] if run.finished), key=finished_at)
        kept += finished[-1:] or by_seed[seed]
    return kept


def finished_at(run: RunRecord) -> float:
    """Seconds since 1970, of a finished run."""
    assert run.result is not None
    return run.result["finished"]


def find_run(word: str, root: Path) -> RunRecord:
    """The run that `word` names: a path, a directory name below `root`, or a unique prefix of its name or hash.

    Raises UsageError naming the nearest runs when there is none, and the candidates when there are several.
    """
    if Path(word).is_dir():
        return read_run(Path(word))
    runs = find_runs(root).runs
    found = [run for run in runs if run.name == word] or [
        run for run in runs if run.name.startswith(word) or run.run_hash.startswith(word)
    ]
    if not found:
        raise UsageError(f"no run '{word}' in {root}{nearest(word, [run.name for run in runs])}")
    if len(found) > 1:
        paths = "\n".join(f"  {run.path}" for run in found)
        raise UsageError(f"'{word}' names {len(found)} runs; give more of the name, or a path:\n{paths}")
    return found[0]


def nearest(word: str, names: Iterable[str]) -> str:
    """'; did you mean ...?' with up to three of the names that look like `word`, or nothing."""
    near = difflib.get_close_matches(word, list(names), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def life_sign(status: dict[str, Any]) -> str:
    """What is wrong with a run that claims to be running: its process is gone or it is silent; '' if nothing is."""
    if status.get("state") != "running":
        return ""
    if status["host"] == socket.gethostname() and not _is_alive(status["pid"]):
        return "its process is gone; the same command resumes it"
    silence = time.time() - status["heartbeat"]
    return f"no heartbeat for {silence / 60:.0f} min" if silence > SILENT_AFTER else ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, so there is one
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:  # no Linux, or it has just ended
        return True
    return state not in ("Z", "X")  # ended, but its parent has not taken notice; in a container perhaps never


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        content = files.read_json(path)
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {_first_line(error)}")
        return None
    except files.DamagedFileError as damage:
        problems.append(f"{path.name} cannot be read: {damage.reason}")
        return None
    if content is None:
        return None
    if not isinstance(content, dict):
        problems.append(f"{path.name} cannot be read: it holds no object")
        return None
    if content.get("schema", SCHEMA) > SCHEMA:
        raise UsageError(
            f"{path} has schema {content['schema']}, this PrivLM reads up to {SCHEMA}: update PrivLM to read it"
        )
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
