"""Task pfedcr from the command line: a central arm, kills, a shared warm start, privacy, the trained model at work."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.lines import needs_fonts
from support.zygote import Finished, Zygote

from privlm import files
from privlm.cli import main
from privlm.models.saving import TRAINED

pytestmark = [pytest.mark.medium, needs_fonts]

SHORT = (
    "task.warm_start.short_images=32", "task.warm_start.short_steps=4", "task.warm_start.line_images=16",
    "task.warm_start.line_steps=2", "trainer.steps=4", "trainer.checkpoint_every=2", "data.num_train_lines=8",
    "data.num_test_lines=4",
)  # fmt: skip


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=pfedcr", "scale=smoke", f"runs={runs}", *SHORT, *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "pfedcr").iterdir()
    return directory


def rows(runs: Path) -> dict[tuple[str, str | None], Any]:
    found = files.read_json(only_run(runs) / "result.json")
    assert found is not None
    return {(row["metric"], row["split"]): row["value"] for row in found["rows"]}


def weights(runs: Path) -> dict[str, str]:
    return {str(path.relative_to(runs)): files.sha256_file(path) for path in sorted(runs.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    runs = tmp_path_factory.mktemp("whole")
    finished = run(zygote, runs, "data.wrong_labels=0.25")
    assert finished.status == 0, finished.output
    return finished, runs


def test_the_central_arm_runs_from_start_to_end(whole: tuple[Finished, Path]) -> None:
    finished, runs = whole
    found, directory = rows(runs), only_run(runs)
    for split in ("warm_start", "central"):
        for metric in ("own_char", "own_line", "own_ned", "cross_char", "cross_ned", "worst_client_char"):
            assert 0 <= found[metric, split] <= 1
    assert ("char", "express") in found
    assert ("matrix_char", "express on bank") not in found
    assert found["label_error_recall", "train"] == 0
    assert (found["train_lines", None], found["test_lines", None]) == (16, 8)
    pictures = sorted(path.name for path in (directory / "pictures").iterdir())
    assert pictures == ["cross_domain.png", "lines_bank.png", "lines_express.png"]
    with (directory / "stages" / "evaluate" / "clients" / "bank" / "label_errors.csv").open() as file:
        assert next(csv.reader(file)) == ["line", "label", "reading", "confidence"]
    assert "warning: CTC plateau after warm_start" in finished.output


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_run_killed_in_any_stage_ends_equal(
    share: float, whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    finished, runs = whole
    words = ("data.wrong_labels=0.25",)
    killed = run(zygote, tmp_path, *words, fault=("kill", int(share * finished.writes)))
    assert killed.status == -9, killed.output
    again = run(zygote, tmp_path, *words)
    assert again.status == 0, again.output
    assert weights(tmp_path) == weights(runs)
    assert rows(tmp_path) == rows(runs)


def test_arms_may_begin_with_the_warm_start_of_one_run(
    whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    _, runs = whole
    start = only_run(runs)
    finished = run(zygote, tmp_path, f"task.start_run={start}", "data.wrong_labels=0.25")
    assert finished.status == 0, finished.output
    name = f"stages/train/model/{TRAINED}"
    assert files.sha256_file(only_run(tmp_path) / name) == files.sha256_file(start / name)
    other = run(zygote, tmp_path, f"task.start_run={start}", "seed=1")
    assert other.status == 2, other.output
    assert "was trained from other weights" in other.output


def test_a_run_that_made_no_warm_start_gives_none(zygote: Zygote, tmp_path: Path) -> None:
    none = ("task.warm_start.short_steps=0", "task.warm_start.line_steps=0")
    finished = run(zygote, tmp_path, *none, "model.attention=none")
    assert finished.status == 0, finished.output
    assert ("own_char", "warm_start") not in rows(tmp_path)
    refused = run(zygote, tmp_path / "other", f"task.start_run={only_run(tmp_path)}")
    assert refused.status == 2
    assert "has no warm start of its own" in refused.output


def test_privacy_is_one_switch(zygote: Zygote, tmp_path: Path) -> None:
    finished = run(zygote, tmp_path, "privacy=dp_sgd", "trainer.steps=2", "model.max_width=220")
    assert finished.status == 0, finished.output
    found = rows(tmp_path)
    assert 7 < found["epsilon", None] <= 8
    privacy = json.loads((only_run(tmp_path) / "privacy.json").read_text())
    assert privacy["guarantee"] is True


def test_the_trained_model_reads_is_measured_and_leaves(
    whole: tuple[Finished, Path], tmp_path: Path, capsys: Any
) -> None:
    _, runs = whole
    directory, built = str(only_run(runs)), tmp_path / "lines"
    assert main(["build", "lines", str(built), "num_train_lines=3", "num_test_lines=3"]) == 0
    table = tmp_path / "rows.csv"
    table.write_text(f"image\n{built}/bank/test-00000.png\n{built}/bank/test-00001.png\n")
    capsys.readouterr()
    assert main(["predict", directory, str(table)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(answer) for answer in answers] == [["confidence", "text"]] * 2
    assert main(["evaluate", directory, "data=line_folder", f"data.path={built}"]) == 0
    assert "telecom" in capsys.readouterr().out
    assert main(["export", directory, str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "recogniser.json").read_text())
    assert len(told["alphabet"]) == 52
    program = torch.export.load(tmp_path / "out" / "recogniser.pt2").module()
    assert program(torch.zeros(5, 1, 24, 320)).shape == (5, 160, 53)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.attention=none", "task.personalise.attention_epochs=2"], "task.personalise.attention_epochs=2 trains"),
        (["privacy=dp_sgd", "model.norm=batch"], "model.norm=batch couples the lines of a batch"),
        (["model=minilm"], "model: task=pfedcr trains a recogniser of text lines"),
        (["data=sms_spam"], "task=pfedcr takes text lines"),
        (["adapter=lora"], "adapter: task=pfedcr trains all of its recogniser"),
        (["data=line_folder"], "data.path: name the folder of the lines"),
        (["data.alphabet=union"], "data.alphabet=union: rendered lines have small or large"),
        (["data.clients=[express,shop]"], "data.clients: name organisations of rendered lines"),
        (["model=crnn", "model.height=24"], "takes lines of 32 pixels"),
        (["data.path=/nowhere"], "rendered lines are made here"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert main(["run", "task=pfedcr", "scale=smoke", f"runs={tmp_path}", *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_no_text_of_a_line_is_in_logs_and_results(whole: tuple[Finished, Path]) -> None:
    """What a client's lines say stands in its own table of doubts alone; rendered lines have a telltale ending."""
    finished, runs = whole
    directory = only_run(runs)
    for path in directory.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".log", ".yaml", ".html"):
            text = path.read_text(encoding="utf-8")
            assert "人民币" not in text.replace("\\u4eba\\u6c11\\u5e01", "人民币"), path
    assert "人民币" not in finished.output


def test_a_plan_tells_lines_steps_and_price(capsys: Any, tmp_path: Path) -> None:
    assert main(["run", "task=pfedcr", "scale=smoke", f"runs={tmp_path}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "{'express': 16, 'bank': 16}" in told
    assert list(tmp_path.iterdir()) == []
