"""A task of several stages, an outside package: killed anywhere, it ends like the uninterrupted run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from support.zygote import Finished, Zygote

pytestmark = pytest.mark.medium

PACKAGE = Path(__file__).parent / "fixtures" / "staged_task"
NUM_POINTS = 6  # of the writes at which the medium tier kills; the slow tier takes all


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("staged"), packages=PACKAGE)
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def whole(staged: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """The uninterrupted run."""
    runs = tmp_path_factory.mktemp("whole")
    finished = staged.run(*words(runs))
    assert finished.status == 0, finished.output
    return finished, directory(runs)


def words(runs: Path, *others: str) -> list[str]:
    return ["run", "task=staged", "privacy.rng=reproducible", f"runs={runs}", *others]


def directory(runs: Path) -> Path:
    (found,) = (runs / "staged").iterdir()
    return found


def outcome(run: Path) -> dict[str, Any]:
    """Weights, buffers, rows, metrics, reports with the objective's state among them, and the price."""
    kept = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "stages").rglob("*"))
        if path.suffix in (".safetensors", ".jsonl")
    }
    assert len(kept) == 4
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result, privacy = (json.loads((run / name).read_text()) for name in ("result.json", "privacy.json"))
    return {
        "kept": kept,
        "metrics": [{**row, "time": None} for row in metrics if row["split"] != "run"],  # that split tells of speed
        "rows": result["rows"],
        "epsilon": privacy["epsilon"],
        "stages": privacy["stages"],
    }


def killed_and_resumed(staged: Zygote, runs: Path, kind: str, write: int) -> dict[str, Any]:
    struck = staged.run(*words(runs), fault=(kind, write))
    assert struck.status == -9
    resumed = staged.run(*words(runs))
    assert resumed.status == 0, f"{kind} at write {write}: {resumed.output}"
    return outcome(directory(runs))


@pytest.mark.parametrize("point", range(NUM_POINTS))
def test_killed_at_a_write(point: int, staged: Zygote, whole: tuple[Finished, Path], tmp_path: Path) -> None:
    finished, expected = whole
    write = 1 + (2 * point + 1) * finished.writes // (2 * NUM_POINTS)
    assert killed_and_resumed(staged, tmp_path, "torn" if point % 2 else "kill", write) == outcome(expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "torn"])
def test_killed_at_every_write(kind: str, staged: Zygote, whole: tuple[Finished, Path], tmp_path: Path) -> None:
    finished, expected = whole
    for write in finished.appends if kind == "torn" else range(1, finished.writes + 1):
        found = killed_and_resumed(staged, tmp_path / str(write), kind, write)
        assert found == outcome(expected), f"{kind} at write {write}"


def test_two_private_stages_cost_what_dp_accounting_says_for_both(whole: tuple[Finished, Path]) -> None:
    privacy = json.loads((whole[1] / "privacy.json").read_text())
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    one = dp_accounting.PoissonSampledDpEvent(8 / 32, dp_accounting.GaussianDpEvent(1.0))
    accountant.compose(one, 4 + 4)
    assert privacy["epsilon"] == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-3)
    assert privacy["flags"] == ["seeded_noise", "without_privacy: public"]


def test_no_two_releases_of_the_stages_share_their_noise(whole: tuple[Finished, Path]) -> None:
    releases = [json.loads(line) for line in (whole[1] / "privacy_ledger.jsonl").read_text().splitlines()]
    assert [(release["stage"], release["step"]) for release in releases] == [
        (stage, step) for stage in ("first", "second") for step in (1, 2, 3, 4)
    ]
    assert len({release["noise_id"] for release in releases}) == 8


def test_series_are_labelled_and_the_state_of_the_objective_is_reported(whole: tuple[Finished, Path]) -> None:
    rows = [json.loads(line) for line in (whole[1] / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows if row.get("client") == 1] == ["public", "first", "second"]
    reported = {row["split"]: row["value"] for row in json.loads((whole[1] / "result.json").read_text())["rows"]}
    assert reported["public"] > reported["second"] > 0


def test_until_ends_after_a_stage_and_the_command_without_it_goes_on(
    staged: Zygote, whole: tuple[Finished, Path], tmp_path: Path
) -> None:
    stopped = staged.run(*words(tmp_path, "task.until=first"))
    assert stopped.status == 0
    assert "stopped by task.until=first; the same command without it goes on" in stopped.output
    status = json.loads((directory(tmp_path) / "status.json").read_text())
    assert (status["state"], list(status["stages"])) == ("interrupted", ["public", "first"])
    assert staged.run(*words(tmp_path)).status == 0
    assert outcome(directory(tmp_path)) == outcome(whole[1])
