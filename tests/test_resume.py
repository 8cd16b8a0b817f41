"""A run killed at any write and started again ends like the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import only_run, outcome, tiny_run
from support.zygote import Finished, Zygote

NUM_POINTS = 4  # of each kind in the medium tier; the slow tier takes all

SETTINGS = {
    "private head": ["privacy.rng=reproducible", "adapter=head"],
    "private lora": ["privacy.rng=reproducible", "adapter=lora"],
    "non-private full": ["privacy=none", "adapter=full"],
}


Uninterrupted = tuple[Finished, dict[str, Any]]


@pytest.fixture(scope="module")
def uninterrupted(
    zygote: Zygote, messages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Uninterrupted]:
    known: dict[str, Uninterrupted] = {}

    def run(setting: str) -> Uninterrupted:
        if setting not in known:
            runs = tmp_path_factory.mktemp("uninterrupted")
            finished = zygote.run(*tiny_run(messages, runs, *SETTINGS[setting]))
            assert finished.status == 0, finished.output
            known[setting] = finished, outcome(only_run(runs))
        return known[setting]

    return run


def killed_and_resumed(
    zygote: Zygote, words: list[str], runs: Path, kind: str, write: int
) -> tuple[Finished, Finished, dict[str, Any]]:
    struck = zygote.run(*words, fault=(kind, write))
    resumed = zygote.run(*words)
    assert resumed.status == 0, f"{kind} at write {write}: {resumed.output}"
    return struck, resumed, outcome(only_run(runs))


@pytest.mark.medium
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("point", range(NUM_POINTS))
def test_killed_at_a_write(
    setting: str,
    point: int,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    finished, expected = uninterrupted(setting)
    write = 1 + (2 * point + 1) * finished.writes // (2 * NUM_POINTS)
    words = tiny_run(messages, tmp_path, *SETTINGS[setting])
    struck, _, resumed = killed_and_resumed(zygote, words, tmp_path, "kill" if point % 2 else "torn", write)
    assert struck.status == -9
    assert resumed == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "torn"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_every_write(
    setting: str,
    kind: str,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    finished, expected = uninterrupted(setting)
    for write in finished.appends if kind == "torn" else range(1, finished.writes + 1):
        runs = tmp_path / str(write)
        words = tiny_run(messages, runs, *SETTINGS[setting])
        _, _, resumed = killed_and_resumed(zygote, words, runs, kind, write)
        assert resumed == expected, f"{kind} at write {write}"


@pytest.mark.medium
@pytest.mark.parametrize("point", range(NUM_POINTS))
def test_full_disk_is_one_message_and_the_last_state_is_kept(
    point: int,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    finished, expected = uninterrupted("private head")
    write = 1 + (2 * point + 1) * finished.writes // (2 * NUM_POINTS)
    words = tiny_run(messages, tmp_path, *SETTINGS["private head"])
    struck, _, resumed = killed_and_resumed(zygote, words, tmp_path, "full", write)
    assert "Traceback" not in struck.output
    assert "No space left on device" in struck.output
    assert struck.status in (0, 1, 2)  # 0 where only the report could not be written
    assert resumed == expected


@pytest.mark.medium
@pytest.mark.parametrize("point", range(3))
def test_fresh_noise_after_a_kill_is_counted(
    point: int,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    finished, expected = uninterrupted("private head")
    write = finished.writes * (4 + point) // 8
    words = tiny_run(messages, tmp_path, "privacy.rng=secure", "adapter=head")
    _, _, resumed = killed_and_resumed(zygote, words, tmp_path, "kill", write)
    directory = only_run(tmp_path)
    releases = (directory / "privacy_ledger.jsonl").read_text().count("\n")
    assert releases >= resumed["steps"]
    assert (resumed["epsilon"] > expected["epsilon"]) == (releases > 6)
    assert resumed["epsilon"] >= expected["epsilon"]
