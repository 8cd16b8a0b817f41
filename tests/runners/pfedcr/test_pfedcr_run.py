"""Task pfedcr from the command line: rounds and the central arm, kills, a shared warm start, privacy, predictions."""

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

pytestmark = [pytest.mark.medium, needs_fonts]

SHORT = (
    "task.warm_start.short_images=32", "task.warm_start.short_steps=4", "task.warm_start.line_images=16",
    "task.warm_start.line_steps=2", "trainer.steps=2", "trainer.checkpoint_every=2", "data.num_train_lines=8",
    "data.num_test_lines=4", "task.server.virtual_lines=16",
)  # fmt: skip
PLANTED = "data.wrong_labels=0.25"
WHOLE = ("federated=pfedcr", PLANTED)


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=pfedcr", "scale=smoke", f"runs={runs}", *SHORT, *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "pfedcr").iterdir()
    return directory


def rows(runs: Path) -> dict[tuple[str, str | None], Any]:
    found = files.read_json(only_run(runs) / "result.json")
    assert found is not None
    return {(row["metric"], row["split"]): row["value"] for row in found["rows"]}


def weights(runs: Path, stage: str = "*") -> dict[str, str]:
    """Digests of all tensors that stages have kept, those of clients too."""
    folder = only_run(runs) / "stages"
    found = sorted(folder.glob(f"{stage}/**/*.safetensors"))
    return {str(path.relative_to(folder)): files.sha256_file(path) for path in found}


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    runs = tmp_path_factory.mktemp("whole")
    finished = run(zygote, runs, *WHOLE)
    assert finished.status == 0, finished.output
    return finished, runs


def start_of(whole: tuple[Finished, Path]) -> str:
    return f"task.start_run={only_run(whole[1])}"


def test_rounds_go_from_the_warm_start_to_own_models(whole: tuple[Finished, Path]) -> None:
    finished, runs = whole
    found, directory = rows(runs), only_run(runs)
    for split in ("warm_start", "global", "pfedcr"):
        for metric in ("own_char", "own_line", "own_ned", "cross_char", "cross_ned", "worst_client_char"):
            assert 0 <= found[metric, split] <= 1
    assert {("char", "express"), ("matrix_char", "express on bank")} <= set(found)
    assert found["label_error_recall", "train"] == 0
    assert (found["train_lines", None], found["test_lines", None], found["clients", None]) == (16, 8, 2)
    assert (found["rounds", None], found["steps", "train"], found["rows_seen", "train"]) == (2, 8, 64)
    assert 1 < found["traffic_per_reply", None] < 2  # 188 thousand float32, there and back
    pictures = sorted(path.name for path in (directory / "pictures").iterdir())
    assert pictures == ["cross_domain.png", "lines_bank.png", "lines_express.png"]
    with (directory / "stages" / "evaluate" / "clients" / "bank" / "label_errors.csv").open() as file:
        assert next(csv.reader(file)) == ["line", "label", "reading", "confidence"]
    assert "warning: CTC plateau of the model warm_start" in finished.output
    assert "own models: 2/2" in finished.output


@pytest.mark.parametrize("share", [0.15, 0.9])
def test_a_run_killed_in_the_warm_start_or_at_the_end_ends_equal(
    share: float, whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    finished, runs = whole
    killed = run(zygote, tmp_path, *WHOLE, fault=("kill", int(share * finished.writes)))
    assert killed.status == -9, killed.output
    assert (only_run(tmp_path) / "stages" / "train" / "model").exists() is (share > 0.5)
    again = run(zygote, tmp_path, *WHOLE)
    assert again.status == 0, again.output
    assert weights(tmp_path) == weights(runs)
    assert rows(tmp_path) == rows(runs)


def test_a_run_killed_in_a_round_ends_equal(whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path) -> None:
    killed = run(zygote, tmp_path, *WHOLE, "federated.fault.kill_at_round=2")
    assert killed.status == -9, killed.output
    again = run(zygote, tmp_path, *WHOLE)
    assert again.status == 0, again.output
    assert "goes on after round 1" in again.output
    assert weights(tmp_path) == weights(whole[1])
    assert rows(tmp_path) == rows(whole[1])


@pytest.mark.parametrize("name", ["pfedcr", "fedbn"])
def test_clients_in_processes_of_their_own_end_with_the_same_models(
    name: str, whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    """Own parts of a client begin with the warm start, which the other processes have not seen."""
    for engine in ("inprocess", "pool"):
        words = (f"federated={name}", f"federated.engine={engine}", "federated.workers=2", start_of(whole))
        finished = run(zygote, tmp_path / engine, *words)
        assert finished.status == 0, finished.output
    assert weights(tmp_path / "pool", "train") == weights(tmp_path / "inprocess", "train")
    assert (("own_char", "global") in rows(tmp_path / "pool")) is (name == "pfedcr")  # FedBN leaves the server none
    assert len(weights(tmp_path / "pool", "train")) >= 1 + 2


def test_the_central_arm_may_begin_with_the_warm_start_of_another(
    whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    finished = run(zygote, tmp_path, start_of(whole), "trainer.steps=4")
    assert finished.status == 0, finished.output
    found = rows(tmp_path)
    assert found["own_ned", "warm_start"] == rows(whole[1])["own_ned", "warm_start"]
    assert ("own_char", "central") in found
    assert ("matrix_char", "express on bank") not in found


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=1", "has seed=0, and here it is 1: set it so"),
        ("model.attention=se", "has model.attention=cbam, and here it is se"),
        ("task.warm_start.line_steps=3", "has task.warm_start.line_steps=2, and here it is 3"),
        ("task.server.fonts=disjoint", "has task.server.fonts=shared, and here it is disjoint"),
    ],
)
def test_the_warm_start_of_a_run_that_made_another_is_refused_before_anything_is_written(
    word: str, message: str, whole: tuple[Finished, Path], zygote: Zygote, tmp_path: Path
) -> None:
    other = run(zygote, tmp_path / "runs", start_of(whole), word)
    assert other.status == 2, other.output
    assert message in other.output
    assert not (tmp_path / "runs").exists()


def test_a_run_that_made_no_warm_start_gives_none(zygote: Zygote, tmp_path: Path) -> None:
    none = ("task.warm_start.short_steps=0", "task.warm_start.line_steps=0")
    finished = run(zygote, tmp_path, *none, "model.attention=none", "federated=local", "federated.rounds=1")
    assert finished.status == 0, finished.output
    assert {split for metric, split in rows(tmp_path) if metric == "own_char"} == {"local"}
    refused = run(zygote, tmp_path / "other", f"task.start_run={only_run(tmp_path)}")
    assert refused.status == 2
    assert "has no warm start of its own" in refused.output


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (("trainer.steps=2",), "record"),
        (("federated=pfedcr", "privacy=dp_sgd", "federated.rounds=1", "trainer.steps=1"), "record"),
        (("federated=fedavg", "privacy=dp_fedavg"), "client"),
    ],
)
def test_privacy_is_one_switch(words: tuple[str, ...], unit: str, zygote: Zygote, tmp_path: Path) -> None:
    finished = run(zygote, tmp_path, "privacy=dp_sgd", "model.max_width=220", *words)
    assert finished.status == 0, finished.output
    found = rows(tmp_path)
    assert 7 < found["epsilon", None] <= 8
    assert not any(split == "train" and "label" in metric for metric, split in found)
    privacy = json.loads((only_run(tmp_path) / "privacy.json").read_text())
    assert privacy["guarantee"] is True
    assert f"privacy per {unit}" in finished.output


def test_the_trained_models_read_are_measured_and_leave(
    whole: tuple[Finished, Path], tmp_path: Path, capsys: Any
) -> None:
    _, runs = whole
    directory, built = str(only_run(runs)), tmp_path / "lines"
    assert main(["build", "lines", str(built), "num_train_lines=3", "num_test_lines=3"]) == 0
    table = tmp_path / "rows.csv"
    line = f"{built}/bank/test-00000.png"
    table.write_text(f"image,client\n{line},\n{line},bank\n{line},\n{line},express\n")
    capsys.readouterr()
    assert main(["predict", directory, str(table)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(answer) for answer in answers] == [["confidence", "text"]] * 4
    assert answers[0] == answers[2]
    assert len({answer["confidence"] for answer in answers}) == 3  # the server's model, and those of two clients
    table.write_text(f"image,client\n{line},shop\n")
    assert main(["predict", directory, str(table)]) == 2
    assert "client 'shop' has no model of its own; express, bank has" in capsys.readouterr().err
    assert main(["evaluate", directory, "data=line_folder", f"data.path={built}"]) == 0
    told = capsys.readouterr().out
    assert "telecom" in told
    assert "own_char" in told
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
        (["federated=fedavg", "privacy=dp_fedavg", "model.norm=batch"], "model.norm=batch couples the lines"),
        (
            ["federated=pfedcr", "federated.partition=iid", "federated.num_clients=2"],
            "each line of task=pfedcr has its",
        ),
        (["federated=local", "federated.num_clients=2"], "federated.num_clients=2 deals rows out"),
        (["federated=fedavg", "federated.partition=explicit", "federated.manifest=a.json"], "federated.manifest=a"),
        (
            ["federated=fedavg", "federated.secure_aggregation=true", "federated.wire=int8"],
            "quantises by itself: set federated.wire=fp32",
        ),
        (["federated=pfedcr", "task.personalise.attention_learning_rate=0"], "attention_learning_rate must be"),
        (["federated=pfedcr", "federated.engine=flower"], "federated=pfedcr ends with a model of each client's own"),
        (["federated=pfedcr", "task.personalise.mix=2"], "task.personalise.mix must be"),
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


def test_the_method_is_of_this_task_alone(tmp_path: Path, capsys: Any) -> None:
    assert main(["run", "task=fedit", "scale=smoke", "federated=pfedcr", f"runs={tmp_path}"]) == 2
    assert "choose task=pfedcr" in capsys.readouterr().err


def test_a_plan_tells_lines_steps_and_price(capsys: Any, tmp_path: Path) -> None:
    assert main(["run", "task=pfedcr", "scale=smoke", f"runs={tmp_path}", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "{'express': 16, 'bank': 16}" in told
    assert main(["run", "task=pfedcr", "scale=smoke", "federated=pfedcr", f"runs={tmp_path}", "--dry-run"]) == 0
    assert "{'express': 4, 'bank': 4}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
