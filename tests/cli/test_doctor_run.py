"""`privlm doctor RUN`: what is left of a run of before, damaged files, keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privlm import files
from privlm.cli import doctor
from privlm.errors import PrivLMError, UsageError

pytestmark = pytest.mark.torch_free

MakeRun = Callable[..., Path]


def problems(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> list[tuple[str, str]]:
    assert doctor.main([*words, "--json"]) == status
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return [(finding["subject"], finding["text"]) for finding in found if finding["status"] == "problem"]


def test_a_run_that_left_nothing_is_well(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(capsys, str(make_run(tmp_path)), status=0) == []
    with pytest.raises(UsageError, match=r"--clean is of one run: privlm doctor RUN --clean"):
        doctor.main(["--clean"])


def test_features_and_unfinished_writes_of_an_older_run_are_found_and_removed(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"features": {"state": "done", "seconds": 1.0, "outputs": {"stages/features/features.safetensors": "0"}}}
    run = make_run(tmp_path, status={"stages": stages})
    features, torn = run / "stages" / "features" / "features.safetensors", run / "checkpoints" / ".step-4.tmp"
    features.parent.mkdir(parents=True)
    features.write_text("of private texts")
    torn.mkdir(parents=True)
    found = dict(text.split(":")[::-1] for _, text in problems(capsys, str(run)))
    assert found == {
        " a write that was cut short": "checkpoints/.step-4.tmp",
        " made of the run's texts, and of no more use": "stages/features/features.safetensors",
    }
    assert problems(capsys, str(run), "--clean", status=0) == []
    assert not features.exists()
    assert not torn.exists()


def test_a_run_that_can_go_on_keeps_its_features(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"mine": {"state": "done", "seconds": 1.0, "outputs": {}, "discard": ["stages/mine"]}}
    run = make_run(tmp_path, state="interrupted", status={"stages": stages})
    (run / "stages" / "mine").mkdir(parents=True)
    assert doctor.main([str(run), "--clean"]) == 0
    assert "stages/mine: made of the run's texts, kept as long as the run can go on" in capsys.readouterr().out
    assert (run / "stages" / "mine").exists()


def test_damaged_files_are_named(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    step = run / "checkpoints" / "train" / "step-2"
    step.mkdir(parents=True)
    (step / "model.safetensors").write_text("weights")
    files.write_digests(step)
    (step / "model.safetensors").write_text("weighty")
    status = json.loads((run / "status.json").read_text())
    status["stages"]["train"]["outputs"] = {"stages/train/model/head": "0"}
    files.write_json(run / "status.json", status)
    files.write_json(run / "result.json", files.read_json(run / "result.json"))
    (run / "result.json").write_text((run / "result.json").read_text().replace("0.976", "0.979"))
    assert [text for _, text in problems(capsys, str(run))] == [
        "result.json cannot be read: its content is not what was written",
        "stages/train/model/head is absent or not what was written",
        "checkpoints/train/step-2/model.safetensors is not what was written",
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("overrides.txt", "llm.base_url=https://me:word@host/v1"),
        ("config.yaml", "llm: {api_key: word}"),
        ("wandb/run-1/files/wandb-metadata.json", '  "llm.api_key=word",'),
        ("run.log", "refused: sk-" + "a1" * 12),
        ("env.json", '{"command": "privlm run x=canary-4711-of-nobody"}'),
    ],
)
def test_keys_that_an_older_run_has_written_down_are_found(
    name: str,
    line: str,
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-4711-of-nobody")
    run = make_run(tmp_path)
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n")
    assert ("keys", f"{name} line 1: what looks like a key") in problems(capsys, str(run))


def test_a_run_in_use_is_not_cleaned(make_run: MakeRun, tmp_path: Path) -> None:
    from privlm import rundir

    run = make_run(tmp_path)
    with rundir.locked(run), pytest.raises(PrivLMError, match="is in use by process"):
        doctor.main([str(run), "--clean"])
