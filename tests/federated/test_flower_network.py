"""A SuperLink and two SuperNodes on this machine: the model of one process, and a node that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loopback import PATIENCE, Loopback, environment, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    if (venv := environment()) is None:
        pytest.skip("no environment with Flower: scripts/flower_env.sh makes one (PRIVLM_FLOWER_VENV names another)")
    with running(venv, tmp_path_factory.mktemp("flower")) as network:
        yield network


def result(folder: Path, runs: str) -> dict[str, Any]:
    (path,) = (folder / runs).glob("parity/*/result.json")
    return json.loads(path.read_text())


def metrics(folder: Path, runs: str, name: str) -> list[float]:
    rows = [
        json.loads(line)
        for path in (folder / runs).glob("parity/*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [row["value"] for row in rows if row["name"] == name and "client" not in row]


def finished(network: Loopback, *words: str) -> str:
    process = network.privlm(*words)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def wait_for_a_round(network: Loopback, process: subprocess.Popen[str], runs: str) -> None:
    end = time.monotonic() + 5 * PATIENCE
    while not metrics(network.folder, runs, "accuracy"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)


def test_the_network_gives_the_model_of_one_process_round_by_round(network: Loopback) -> None:
    finished(network, "run", "task=parity", "runs=one")
    said = finished(network, *network.words("runs=all", "federated.timeout_s=300"))
    assert "train: 3/3" in said
    assert result(network.folder, "all")["notes"] == result(network.folder, "one")["notes"]  # the digest
    for name in ("accuracy", "loss", "bytes_up"):
        assert metrics(network.folder, "all", name) == metrics(network.folder, "one", name)
    assert len(metrics(network.folder, "all", "accuracy")) == 3
    assert "already done" in finished(network, *network.words("runs=all", "federated.timeout_s=300"))


def test_under_privacy_the_price_is_that_of_one_process(network: Loopback) -> None:
    words = ["privacy=dp_sgd", "privacy.epsilon=null", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3"]
    words += ["privacy.rng=reproducible", "federated.rounds=1", "federated.timeout_s=300"]
    finished(network, "run", "task=parity", "runs=private_one", *words)
    finished(network, *network.words("runs=private", *words))
    ours, theirs = result(network.folder, "private"), result(network.folder, "private_one")
    assert ours["rows"] == theirs["rows"]
    assert any(row["metric"] == "epsilon" for row in ours["rows"])


def test_a_node_that_is_killed_in_the_second_round_is_survived(network: Loopback) -> None:
    process = network.privlm(*network.words("runs=killed", "federated.timeout_s=60"))
    wait_for_a_round(network, process, "killed")
    network.kill("node1")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert metrics(network.folder, "killed", "replies") == [2, 1, 1]
    assert "client c1 is left out" in said
    network.start_node(1)


def test_a_run_that_is_stopped_goes_on_by_the_same_command(network: Loopback) -> None:
    words = network.words("runs=stopped", "federated.rounds=2", "federated.timeout_s=300")
    process = network.privlm(*words)
    wait_for_a_round(network, process, "stopped")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130, said
    said = finished(network, *words)
    assert "goes on after round 1" in said
    finished(network, "run", "task=parity", "runs=whole", "federated.rounds=2")
    assert result(network.folder, "stopped")["notes"] == result(network.folder, "whole")["notes"]


def test_nothing_outlives_the_network(tmp_path: Path) -> None:
    if (venv := environment()) is None:
        pytest.skip("no environment with Flower: scripts/flower_env.sh makes one (PRIVLM_FLOWER_VENV names another)")
    with running(venv, tmp_path) as network:
        assert len(network.left()) >= 3
    assert network.left() == []
