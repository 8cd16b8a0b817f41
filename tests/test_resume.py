"""A run killed at any write and started again ends like the uninterrupted one."""

from __future__ import annotations

import shutil
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


def leftovers(directory: Path) -> list[str]:
    """What is made of the texts of a run and of no use when it is done."""
    found = [*directory.glob("stages/features"), *directory.rglob(".*.tmp")]
    return [str(path.relative_to(directory)) for path in found]


@pytest.mark.medium
@pytest.mark.parametrize("before_the_end", [0, 1])
def test_killed_at_the_removal_of_what_is_made_of_private_texts(
    before_the_end: int,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    finished, expected = uninterrupted("private head")
    words = tiny_run(messages, tmp_path, *SETTINGS["private head"])
    struck, _, resumed = killed_and_resumed(zygote, words, tmp_path, "remove", finished.removals - before_the_end)
    assert struck.status == -9
    assert resumed == expected
    assert leftovers(only_run(tmp_path)) == []


@pytest.mark.medium
def test_finished_run_that_left_features_loses_them_when_it_is_skipped(
    zygote: Zygote, messages: Path, tmp_path: Path
) -> None:
    words = tiny_run(messages, tmp_path, *SETTINGS["private head"])
    assert zygote.run(*words).status == 0
    directory = only_run(tmp_path)
    assert leftovers(directory) == []
    for name in ("stages/features/features.safetensors", "checkpoints/train/.step-9.tmp/model.safetensors"):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text("of private texts")
    again = zygote.run(*words)
    assert "already done" in again.output
    assert leftovers(directory) == []


FLIPPED = (
    "status.json", "privacy.json", "stages/features/features.safetensors", "checkpoints/train/step-4/model.safetensors",
    "checkpoints/train/step-4/optimizer.pt", "checkpoints/train/step-4/progress.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def cut(
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The runs folder of a run that was killed when it had checkpoints of the steps 2 and 4."""
    runs = tmp_path_factory.mktemp("cut") / "runs"
    words = tiny_run(messages, runs, *SETTINGS["private head"])
    num_writes = uninterrupted("private head")[0].writes
    for write in range(num_writes // 2, num_writes, 4):
        shutil.rmtree(runs, ignore_errors=True)
        assert zygote.run(*words, fault=("kill", write)).status == -9
        if (only_run(runs) / "checkpoints" / "train" / "step-4").exists():
            return runs
    raise AssertionError("no kill leaves a checkpoint of step 4")


@pytest.mark.medium
@pytest.mark.parametrize("name", FLIPPED)
def test_flipped_bit_is_mended_or_refused_by_name(
    name: str,
    cut: Path,
    zygote: Zygote,
    messages: Path,
    uninterrupted: Callable[[str], Uninterrupted],
    tmp_path: Path,
) -> None:
    _, expected = uninterrupted("private head")
    shutil.copytree(cut, tmp_path / "runs")
    path = only_run(tmp_path / "runs") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    resumed = zygote.run(*tiny_run(messages, tmp_path / "runs", *SETTINGS["private head"]))
    assert "Traceback" not in resumed.output
    if resumed.status == 0:
        assert outcome(only_run(tmp_path / "runs")) == expected
        # Around what its stages have said, status.json holds nothing that a result is made of.
        harmless = ("privacy.json", "status.json", "stages/features/features.safetensors")
        assert name in harmless or "is used" in resumed.output
    else:
        assert resumed.status == 2
        assert f"{name} is damaged" in resumed.output.splitlines()[-1]


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
