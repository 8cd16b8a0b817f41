"""Sweeps of the fixture task `pacing`, as a user starts them, and what they have left on record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1] / "fixtures" / "pacing_task"
SECONDS = 120.0  # that a test waits for what is bound to come


@dataclass(frozen=True)
class Place:
    """A working directory for sweeps. environ: what is set beside the environment of the tests."""

    folder: Path
    environ: dict[str, str]

    @property
    def record(self) -> Path:
        return self.folder / "record"

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "privlm", *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words(*words), cwd=self.folder, env=self._environ(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def privlm(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.words(*words), cwd=self.folder, env=self._environ(), text=True, capture_output=True, check=False
        )
        assert done.returncode == status, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def sweep(self, *words: str) -> list[str]:
        """The words of a sweep of `pacing`."""
        return ["sweep", "task=pacing", f"task.record={self.record}", *words]

    def status(self) -> dict[str, dict[str, Any]]:
        """Seed -> what `privlm status --json` says of its run, of the one sweep there is."""
        told = json.loads(self.privlm("status", "pacing", "--json").stdout)
        seeds = [next(word for word in run["overrides"] if word.startswith("seed=")) for run in told["runs"]]
        return {seed.partition("=")[2]: run for seed, run in zip(seeds, told["runs"], strict=True)}

    def states(self) -> dict[str, str]:
        return {seed: run["state"] for seed, run in self.status().items()}

    def on_record(self) -> Counter[str]:
        """`SEED begins` and `SEED step N` -> how often."""
        return Counter(self.record.read_text().splitlines()) if self.record.exists() else Counter()

    def begins(self) -> dict[str, int]:
        """Seed -> how often its run was begun."""
        return {line.split()[0]: number for line, number in self.on_record().items() if line.endswith("begins")}

    def directory(self, seed: int) -> Path:
        (directory,) = (self.folder / "runs" / "pacing").glob(f"seed{seed}-*")
        return directory

    def _environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | self.environ


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    """Processes that `pid` has started, and theirs."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = path.read_text()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(stat.rpartition(")")[2].split()[1])
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
