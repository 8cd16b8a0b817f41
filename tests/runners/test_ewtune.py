"""Task ewtune from the command line: adapters, a RoBERTa directory, strictness, what is written and what never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import only_run, tiny_run, write_messages
from support.zygote import Zygote
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaConfig, RobertaForMaskedLM

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory laid out like roberta-base, with two small random layers."""
    folder = tmp_path_factory.mktemp("roberta")
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GLUE's form with made-up sentences."""
    folder = tmp_path_factory.mktemp("SST-2")
    for name, size in (("train", 64), ("dev", 20)):
        rows = [f'a {"fine" if i % 2 else "dull"} film, "number {i} \t{i % 2}\n' for i in range(size)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    return folder


def result(directory: Path) -> dict[str, float]:
    rows = json.loads((directory / "result.json").read_text())["rows"]
    return {row["metric"]: row["value"] for row in rows}


def privacy(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "privacy.json").read_text())


@pytest.mark.parametrize("adapter", ["head", "lora", "rgp", "full"])
def test_roberta_directory_trains_and_evaluates(
    adapter: str, zygote: Zygote, roberta: Path, sst2: Path, tmp_path: Path
) -> None:
    words = [
        "run", "task=ewtune", "model=roberta", f"model.path={roberta}", f"data.path={sst2}", f"runs={tmp_path}",
        f"adapter={adapter}", "trainer.steps=3", "trainer.epochs=null", "trainer.batch_size=8", "privacy.delta=1e-3",
    ]  # fmt: skip
    finished = zygote.run(*words)
    assert finished.status == 0, finished.output
    assert "scale=paper (natural to model=roberta)" in finished.output
    assert "data=sst2 (recipe)" in finished.output
    directory = only_run(tmp_path)
    found = result(directory)
    assert 0 <= found["accuracy"] <= 1
    assert found["majority_class"] == 0.5
    assert 7.9 < found["epsilon"] <= 8
    assert privacy(directory)["steps"] == 3


def test_roberta_without_network_says_what_is_missing_and_how_to_give_it(tmp_path: Path) -> None:
    probe = (
        "import sys; from privlm.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy imports before the lookup'; "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, "run", "task=ewtune", "model=roberta", f"runs={tmp_path / 'runs'}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "path=" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_estimate_sets_the_noise_only_without_strict(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    """A short run, where the Edgeworth estimate asks for too little noise."""
    budget = ("privacy.epsilon=8", "privacy.noise_multiplier=null", "privacy.accountant=edgeworth")
    spent = {}
    for strict in ("true", "false"):
        finished = zygote.run(*tiny_run(messages, tmp_path / strict, *budget, f"privacy.strict={strict}"))
        assert finished.status == 0, finished.output
        assert ("is not a guarantee" in finished.output) == (strict == "true")
        spent[strict] = privacy(only_run(tmp_path / strict))
    assert spent["true"]["epsilon"] <= 8 < spent["false"]["epsilon"]
    assert spent["true"]["noise_multiplier"] == spent["true"]["noise_multipliers"]["pld"]
    assert spent["false"]["noise_multiplier"] == spent["false"]["noise_multipliers"]["edgeworth"]
    assert spent["false"]["estimates"]["edgeworth"] <= 8
    assert all(account["guarantee"] and account["accountant"] == "pld" for account in spent.values())
    assert "saving_vs_rdp" not in result(only_run(tmp_path / "false"))  # not a saving: the budget is broken


def test_each_evaluation_split_is_measured_and_marks_are_shown(zygote: Zygote, tmp_path: Path) -> None:
    """MultiNLI's form, with other rows than it has: whether they are few or public, nobody can say."""
    for split, size in (("train", 48), ("dev_matched", 20), ("dev_mismatched", 10)):
        labels = [("neutral", "entailment", "contradiction")[i % 3] for i in range(size)]
        rows = [f"{i}\tA dog {i}.\tA cat.\t{label}\n" for i, label in enumerate(labels)]
        (tmp_path / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tgold_label\n" + "".join(rows))
    words = tiny_run(tmp_path, tmp_path / "runs", "data=mnli", "model.pretrained_on=[multi_nli]")
    finished = zygote.run(*words)
    assert finished.status == 0, finished.output
    assert "marks    own data" in finished.output
    directory = only_run(tmp_path / "runs")
    content = json.loads((directory / "result.json").read_text())
    measured = {(row["metric"], row["split"]): row["n"] for row in content["rows"] if row["n"]}
    assert measured == {
        ("accuracy", "dev_matched"): 20,
        ("accuracy", "dev_mismatched"): 10,
        ("majority_class", "dev_matched"): 20,
        ("majority_class", "dev_mismatched"): 10,
    }
    assert content["marks"] == ["own data"]
    assert {"own data", "smoke"} <= set(privacy(directory)["flags"])
    assert "not the rows that the data set of the configuration names" in (directory / "report.html").read_text()
    assert directory.name.startswith(f"tiny-{tmp_path.name}")


def test_nothing_of_the_data_is_written(zygote: Zygote, tmp_path: Path) -> None:
    canary = "canary0123456789"
    messages = tmp_path / "messages.txt"
    lines = write_messages(messages).read_text().splitlines()
    messages.write_text("\n".join(f"{line} {canary}{number}" for number, line in enumerate(lines)) + "\n")
    runs = tmp_path / "runs"
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    finished = zygote.run(
        *tiny_run(messages, runs, "privacy.log_private_diagnostics=true", "tracker=tensorboard", "trainer.log_every=1")
    )
    assert finished.status == 0, finished.output
    assert canary not in finished.output
    written = [path for path in runs.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if canary.encode() in path.read_bytes()] == []
    assert "non_private_diagnostics" in privacy(only_run(runs))["flags"]


def test_broken_data_is_one_message_without_its_text(zygote: Zygote, tmp_path: Path) -> None:
    messages = tmp_path / "messages.txt"
    messages.write_text(write_messages(messages).read_text() + "hamm\ta secret message\n")
    finished = zygote.run(*tiny_run(messages, tmp_path / "runs"))
    assert finished.status == 2
    assert "messages.txt line 121" in finished.output
    assert "secret" not in finished.output
    assert "Traceback" not in finished.output


def test_finished_run_is_skipped_and_forced(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path)
    zygote.run(*words)
    directory = only_run(tmp_path)
    before = (directory / "result.json").read_bytes()
    (directory / "report.html").unlink()
    skipped = zygote.run(*words, "--json")
    assert skipped.status == 0
    assert "already done" in skipped.output
    assert (directory / "result.json").read_bytes() == before
    assert (directory / "report.html").exists()
    printed = json.loads(skipped.output[skipped.output.index("{") :])
    assert printed["privacy"]["steps"] == 6
    forced = zygote.run(*words, "--force")
    assert forced.status == 0
    assert "already done" not in forced.output
    assert (directory / "result.json").read_bytes() != before
    assert json.loads((directory / "status.json").read_text())["restarts"] == 0


def test_sweep_runs_every_combination_and_shows_the_mean(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    words = tiny_run(messages, tmp_path, "seed=0,1", "adapter=head,lora")
    finished = zygote.run("sweep", *words[1:])
    assert finished.status == 0, finished.output
    assert len(list((tmp_path / "ewtune").iterdir())) == 4
    assert "(2 seeds)" in finished.output
    listed = zygote.run("sweep", *words[1:], "--dry-run")
    assert listed.output.count("done") == 4
    wrong = zygote.run("sweep", *words[1:], "privacy.delta=1e-3,7")
    assert wrong.status == 2
    assert "privacy.delta" in wrong.output


@pytest.mark.parametrize("adapter", ["head", "lora", "rgp", "full"])
def test_a_finished_run_predicts_is_measured_and_exported(
    adapter: str, zygote: Zygote, messages: Path, tmp_path: Path
) -> None:
    finished = zygote.run(*tiny_run(messages, tmp_path / "runs", "privacy=none", f"adapter={adapter}"))
    assert finished.status == 0, finished.output
    run = only_run(tmp_path / "runs")
    (tmp_path / "rows.csv").write_text('text\n"win cash, now"\nlorem ipsum\n')
    said = zygote.run("predict", str(run), str(tmp_path / "rows.csv"))
    answers = [json.loads(line) for line in said.output.splitlines()]
    assert [set(answer["probabilities"]) for answer in answers] == [{"ham", "spam"}] * 2
    assert all(answer["probabilities"][answer["label"]] >= 0.5 for answer in answers)
    measured = json.loads(zygote.run("evaluate", str(run), "--json").output)
    assert measured["test"]["accuracy"]["value"] == result(run)["accuracy"]
    exported = zygote.run("export", str(run), str(tmp_path / "exported"))
    assert exported.status == 0, exported.output
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {
        "README.md",
        "encoder",
        "head.safetensors",
        "classifier.json",
    }


def test_a_row_without_text_and_a_damaged_model_are_named(zygote: Zygote, messages: Path, tmp_path: Path) -> None:
    assert zygote.run(*tiny_run(messages, tmp_path / "runs", "privacy=none", "adapter=head")).status == 0
    run = only_run(tmp_path / "runs")
    (tmp_path / "rows.jsonl").write_text('{"message": "hello"}\n')
    said = zygote.run("predict", str(run), str(tmp_path / "rows.jsonl"))
    assert (said.status, said.output.count("\n")) == (2, 1)
    assert "row 1: no text in column 'text'; the columns are message" in said.output
    weights = run / "stages" / "train" / "model" / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    said = zygote.run("predict", str(run), str(tmp_path / "rows.jsonl"))
    assert said.status == 2
    assert "trained.safetensors is absent or has changed since it was saved" in said.output


def test_a_language_model_is_refused_before_anything_is_written(zygote: Zygote, tmp_path: Path) -> None:
    refused = zygote.run("run", "task=ewtune", "model=tiny_lm", f"runs={tmp_path}")
    assert (refused.status, list(tmp_path.iterdir())) == (2, [])
    assert "model=tiny_lm is a causal language model, and task=ewtune trains an encoder" in refused.output
