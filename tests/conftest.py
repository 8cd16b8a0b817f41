"""Fixtures that several test folders share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.runs import PRIVACY, cell_of, write_messages
from support.zygote import Zygote

os.environ.pop("COLUMNS", None)  # pytest-xdist gives its workers 80 columns; what is piped has as many as it needs


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs many short commands without importing torch for each."""
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of made-up messages."""
    return write_messages(tmp_path_factory.mktemp("messages") / "messages.txt")


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


def write_run(
    root: Path,
    *,
    seed: int = 0,
    cell: str = "cell",
    state: str = "done",
    scale: str = "small",
    values: dict[str, Any] | None = None,
    unit: str = "fraction",
    split: str | None = "test",
    overrides: tuple[str, ...] = ("task=ewtune", "privacy.epsilon=3"),
    config: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
    finished: float = 1.7e9,
) -> Path:
    """A run directory as a job leaves it, with one result row per value; `status` and `result` change its files.

    cell: decides the cell hash, support.runs.cell_of, alone.
    """
    config = {"scale": scale, "seed": seed, "task": {"name": "ewtune"}, "data": {"name": "sms_spam"}} | (config or {})
    roles = {"same_run": [key for key in config if key not in ("seed", "task")], "same_cell": ["seed"]}
    run_hash = hashlib.sha256(f"{cell} {seed}".encode()).hexdigest()
    path = root / "ewtune" / f"minilm-sms_spam-head-dp3-seed{seed}-{run_hash[:8]}"
    path.mkdir(parents=True)
    hashes = {"run_hash": run_hash, "cell_hash": cell_of(cell)}
    stages = {"train": {"state": "done", "seconds": 12.5, "outputs": {}}}
    lifetime = {"pid": 1, "host": "node-a", "heartbeat": finished, "started": finished - 60, "finished": finished}
    base = {"schema": 1, "state": state, "reason": None, "restarts": 0, "stages": stages}
    _write_json(path / "status.json", base | lifetime | hashes | roles | (status or {}))
    rows = [
        {"metric": name, "value": value, "unit": unit, "n": 1040, "ci_low": None, "ci_high": None, "split": split,
         "provenance": "smoke" if scale == "smoke" else "measured"}
        for name, value in (values or {"accuracy": 0.976, "f1": 0.904}).items()
    ]  # fmt: skip
    if state == "done":
        content = {"schema": 1, "task": "ewtune", "scale": scale, "status": "done", "seed": seed, "seconds": 60.0,
                   "cpu_seconds": 90.0, "finished": finished, "rows": rows, "notes": []}  # fmt: skip
        _write_json(path / "result.json", content | hashes | (result or {}))
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"cell": cell}))
    (path / "overrides.txt").write_text("".join(f"{word}\n" for word in (*overrides, f"seed={seed}")))
    _write_json(path / "privacy.json", PRIVACY)
    env = {"python": "3.11.7", "platform": "Linux-x86_64", "gpu": None, "threads": "2", "git_commit": "a" * 40,
           "dirty": False, "privlm": "0.1.0", "packages": {"torch": "2.13.0"}, "command": "privlm run"}  # fmt: skip
    _write_json(path / "env.json", env)
    metrics = [
        {"stage": "train", "step": step, "split": "test", "name": "accuracy", "value": 0.9 + step / 4000, "time": 0.0}
        for step in range(0, 161, 20)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return path


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
