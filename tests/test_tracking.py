import json
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from privlm.errors import UsageError
from privlm.tracking import Tracker, open_tracker

POINTS: list[tuple[str, int, str, dict[str, int], dict[str, float]]] = [
    ("train", 10, "train", {}, {"loss": 0.7, "epsilon": 1.5}),
    ("train", 20, "test", {}, {"accuracy": 0.95}),
    ("train", 20, "train", {}, {"loss": math.nan}),
    ("train", 10, "train", {}, {"loss": 0.65}),  # a resumed run takes step 10 again
    ("train", 20, "train", {}, {"loss": 0.5}),
    ("rounds", 3, "dev", {"client": 1}, {"accuracy": 0.25}),  # steps of its own, smaller than those before
]
LAST = {
    ("train/loss", 10): 0.65,
    ("train/epsilon", 10): 1.5,
    ("test/accuracy", 20): 0.95,
    ("train/loss", 20): 0.5,
    ("rounds/dev/accuracy/client=1", 3): 0.25,
}


def config_of(name: str) -> Any:
    tracker = {"name": name, "project": "privlm", "mode": "offline", "media": False}
    return OmegaConf.create({"seed": 0, "llm": {"api_key": "canary-4711"}, "tracker": tracker})


def log_points(tracker: Tracker) -> None:
    for point in POINTS:
        tracker.log(*point)
    tracker.close()


class Broken:
    def __init__(self) -> None:
        self.calls = 0

    def log(self, stage, step, values):
        self.calls += 1
        raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("a failed backend is not used again")


def test_none_writes_nothing(tmp_path):
    log_points(open_tracker(config_of("none"), "0" * 64, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_logged_once_and_the_run_goes_on(caplog):
    backend = Broken()
    with caplog.at_level(logging.WARNING, logger="privlm"):
        log_points(Tracker("broken", lambda: backend))
    assert backend.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "tracker=broken failed and is off for the rest of the run: no route to host"
    ]


def test_a_tracker_that_cannot_start_does_not_stop_the_run(caplog):
    def fail():
        raise RuntimeError("no disk")

    with caplog.at_level(logging.WARNING, logger="privlm"):
        log_points(Tracker("broken", fail))
    assert len(caplog.records) == 1


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"tracker\.name=mlflow: the trackers are none, wandb, tensorboard"):
        open_tracker(config_of("mlflow"), "0" * 64, tmp_path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'privlm\[tensorboard\]'"):
        open_tracker(config_of("tensorboard"), "0" * 64, tmp_path)


@pytest.mark.medium
def test_tensorboard_holds_the_values_of_the_run(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_points(open_tracker(config_of("tensorboard"), "0" * 64, tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    read = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert read == pytest.approx(LAST)


@pytest.mark.medium
def test_wandb_offline_holds_the_values_without_network_or_login(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["privlm", "run", "llm.api_key=canary-4711", "--key", "canary-815"])
    attempts = block_network(monkeypatch)
    run_id = "5" * 64
    log_points(open_tracker(config_of("wandb"), run_id, tmp_path))
    wandb.teardown()  # waits until the service has written its file
    assert attempts == []
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(file))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.run_id == run_id
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["llm"] == {"api_key": "***"}
    told = {path: path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()}
    assert [path.name for path, content in told.items() if b"canary-" in content] == []
    read = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            step = next(value for name, value in row.items() if name in ("step", "rounds/step"))
            read |= {(name, step): value for name, value in row.items() if name.count("/") and name != "rounds/step"}
    assert read == LAST


def block_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses every connection that leaves this machine; returns the list of refused addresses, filled as they come."""
    attempts: list[Any] = []
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            attempts.append(address)
            raise OSError("the network is blocked in this test")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run. The file is a LevelDB log: 7 bytes, then blocks of 32 KiB from the file's start.

    A chunk is crc (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last), payload; the last bytes of a
    block that cannot hold a chunk's head are padding.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
