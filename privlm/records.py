"""What a run keeps of itself while it works: status.json, metrics.jsonl and small JSON files, or the same in memory."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from privlm import files, rundir

logger = logging.getLogger("privlm")

HEARTBEAT_SECONDS = 10.0
METRIC_FIELDS = frozenset({"stage", "step", "split", "name", "value", "time"})
"""Of a line of metrics.jsonl; what else it holds labels its series."""


class Records:
    """The state and the metrics of one run.

    directory: of the run; None keeps everything in memory.
    writes: False in the processes that are not the main one: they see the state as it was when they started.
    """

    def __init__(self, directory: Path | None, *, writes: bool = True) -> None:
        self.directory = directory
        self.writes = writes
        self.status: dict[str, Any] = {"stages": {}}
        self._in_memory: dict[str, Any] = {}
        self._metrics: list[dict[str, Any]] = []  # in memory only
        self._started, self._cpu_started = time.monotonic(), time.process_time()
        self._heartbeat = 0.0
        if directory is not None:
            self.status = files.read_json(directory / "status.json")
            if writes:
                files.cut_torn_line(directory / "metrics.jsonl")
        self._earlier = set(map(_point, self.metrics()))  # of earlier tries

    # --- status -----------------------------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        self.status.update(changes, heartbeat=time.time())
        if self.writes and self.directory is not None:
            rundir.write_status(self.directory, self.status)

    def beat(self) -> None:
        """Shows that the run is alive, at most every few seconds (a monotonic clock: the wall clock may jump)."""
        if time.monotonic() - self._heartbeat > HEARTBEAT_SECONDS:
            self._heartbeat = time.monotonic()
            self.update()

    def used(self) -> dict[str, float]:
        """Seconds of this try and the earlier ones, by the clock and of the processor."""
        return {
            "seconds": self.status.get("seconds", 0.0) + time.monotonic() - self._started,
            "cpu_seconds": self.status.get("cpu_seconds", 0.0) + time.process_time() - self._cpu_started,
        }

    def stage(self, name: str) -> dict[str, Any] | None:
        return self.status["stages"].get(name)

    def set_stage(self, name: str, record: dict[str, Any]) -> None:
        self.status["stages"][name] = record
        self.update()

    def is_finished(self, stage: str) -> bool:
        """Whether a stage is done and its outputs are as they were left."""
        record = self.stage(stage)
        if record is None or record["state"] != "done":
            return False
        if self.directory is None:
            return True
        paths = {self.directory / path: digest for path, digest in record["outputs"].items()}
        return all(path.is_file() and files.sha256_file(path) == digest for path, digest in paths.items())

    def forget_after(self, stage: str, *, keep: Collection[str]) -> None:
        """Forgets the stages that were first opened after `stage`, with their files: they were made from what it is
        about to make again. keep: stages that stay.
        """
        names = list(self.status["stages"])
        later = [name for name in names[names.index(stage) + 1 :] if name not in keep] if stage in names else []
        for name in later:
            self.drop_metrics(name, -1)
            if self.writes and self.directory is not None:
                for folder in ("stages", "checkpoints"):
                    files.remove(self.directory / folder / name)
            del self.status["stages"][name]
        if later:
            self.update()

    # --- metrics ----------------------------------------------------------------------------------------------------

    def append_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows; they take the place of what an earlier try has logged at the same point."""
        if again := self._earlier & set(map(_point, rows)):
            self._keep_metrics(lambda row: _point(row) not in again)
        if self.directory is None:
            self._metrics += map(dict, rows)
        elif self.writes:
            files.append_json_lines(self.directory / "metrics.jsonl", [dict(row) for row in rows])

    def metrics(self) -> list[dict[str, Any]]:
        """All rows; a line that the disk has damaged is left out, which is told."""
        if self.directory is None:
            return self._metrics
        damaged: list[int] = []
        rows = files.read_json_lines(self.directory / "metrics.jsonl", left_out=damaged)
        if damaged:
            logger.warning("metrics.jsonl: damaged lines are left out: %s", ", ".join(map(str, damaged)))
        return rows

    def drop_metrics(self, stage: str, after: int) -> None:
        """Drops the metrics of `stage` after a step, and a line that a kill has cut short."""
        self._keep_metrics(lambda row: row["stage"] != stage or row["step"] <= after)

    def _keep_metrics(self, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
        kept = [row for row in self.metrics() if wanted(row)]
        self._earlier &= set(map(_point, kept))
        if self.directory is None:
            self._metrics = kept
        elif self.writes and (self.directory / "metrics.jsonl").exists():
            text = "".join(json.dumps(files.finite(row)) + "\n" for row in kept)
            files.write_text(self.directory / "metrics.jsonl", text)

    # --- other files ------------------------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        if self.directory is None:
            self._in_memory[name] = value
        elif self.writes:
            files.write_json(self.directory / name, value)

    def read_json(self, name: str) -> Any:
        return self._in_memory.get(name) if self.directory is None else files.read_json(self.directory / name)


def _point(row: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What tells a row of metrics from others."""
    return tuple(sorted((key, value) for key, value in row.items() if key not in ("value", "time")))
