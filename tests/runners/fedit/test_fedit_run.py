"""Task fedit from the command line: a whole run, kills, privacy, the local arm, the trained model at work, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.composed import composed
from support.runs import outcome
from support.zygote import Finished, Zygote

from privlm import files, registry
from privlm.cli.compose import Words, compose
from privlm.errors import UsageError

KINDS = ("open_qa", "classification")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows of 3 clients to learn, 40 held out."""
    folder = tmp_path_factory.mktemp("rows")
    for name, numbers in {"train": range(30), "test": range(100, 140)}.items():
        lines = [
            {
                "instruction": f"What comes after kestrel {n}?",
                "context": "" if n % 2 else f"Birds {n}.",
                "response": f"lantern {n + 1}",
                "category": KINDS[n % 2],
            }
            | ({"client": n % 3} if name == "train" else {})
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "questions.jsonl").write_text('{"question": "Why do kites fly?"}\n{"question": "What is glass?"}\n')
    return folder


def words(rows: Path) -> tuple[str, ...]:
    return (
        "data=instructions", f"data.path={rows}", "data.template=plain", f"task.questions={rows}/questions.jsonl",
        "trainer.steps=4", "trainer.checkpoint_every=2", "task.max_new_tokens=4", "task.num_generated=6",
        "model.max_length=128",
    )  # fmt: skip


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=fedit", "scale=smoke", f"runs={runs}", *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "fedit").iterdir()
    return directory


def table(directory: Path) -> dict[tuple[str, str | None], Any]:
    return {(row["metric"], row["split"]): row for row in files.read_json(directory / "result.json")["rows"]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def short(zygote: Zygote, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    runs = tmp_path_factory.mktemp("short")
    finished = run(zygote, runs, *words(rows))
    assert finished.status == 0, finished.output
    return only_run(runs), finished


@pytest.mark.medium
def test_every_figure_is_there_with_its_n_and_interval(short: tuple[Path, Finished]) -> None:
    directory, _ = short
    found = table(directory)
    before, after = (
        np.array([line["log_likelihood"] for line in lines(directory / "stages" / stage / "held_out.jsonl")])
        for stage in ("base", "evaluate")
    )
    tokens = np.array([len(f"lantern {n + 1}") + 1 for n in range(100, 140)])  # bytes, and the end of text
    perplexity = found["perplexity", "test"]
    assert perplexity["value"] == pytest.approx(math.exp(-(after * tokens).sum() / tokens.sum()))
    assert (perplexity["n"], perplexity["ci_low"] < perplexity["value"] < perplexity["ci_high"]) == (40, True)
    gain = found["nll_gain", "test"]
    assert gain["value"] == pytest.approx(((after - before) * tokens).sum() / tokens.sum())
    assert gain["ci_low"] > 0  # four steps teach a random model of bytes which bytes there are
    assert found["perplexity", "open_qa"]["n"] == found["perplexity", "classification"]["n"] == 20
    nll = [math.log(found["perplexity", kind]["value"]) for kind in KINDS]
    assert found["perplexity", "macro"]["value"] == pytest.approx(math.exp(sum(nll) / 2))
    assert found["rouge_l", "test"]["n"] == found["truncated", "test"]["n"] == 6
    assert found["rouge_l", "open_qa"]["n"] == found["exact_match", "classification"]["n"] == 3
    budget = {name: found[name, "train"]["value"] for name in ("steps", "rows_seen", "training_rows", "left_out")}
    assert budget == {"steps": 4, "rows_seen": 16, "training_rows": 30, "left_out": 0}
    assert {row["provenance"] for row in found.values()} == {"smoke"}
    assert not any(metric.startswith("judge") for metric, _ in found)
    assert len(lines(directory / "stages" / "evaluate" / "questions.jsonl")) == 2


@pytest.mark.medium
def test_no_instruction_and_no_response_is_written(short: tuple[Path, Finished]) -> None:
    directory, finished = short
    content = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    assert not [text for text in (b"kestrel", b"lantern 1", b"Birds") if any(text in one for one in content)]
    assert "kestrel" not in finished.output


@pytest.mark.medium
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_killed_run_goes_on_where_it_was_and_ends_equal(
    share: float, short: tuple[Path, Finished], rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    directory, whole = short
    killed = run(zygote, tmp_path, *words(rows), fault=("kill", round(share * whole.writes)))
    assert killed.status == -9, killed.output
    finished = run(zygote, tmp_path, *words(rows))
    assert finished.status == 0, finished.output
    assert outcome(only_run(tmp_path)) == outcome(directory)


@pytest.mark.medium
def test_privacy_is_the_ordinary_switch_also_for_one_client(rows: Path, zygote: Zygote, tmp_path: Path) -> None:
    given = (*words(rows), "privacy=dp_sgd", "task.only_client=1", "task.num_generated=0", "task.questions=null")
    finished = run(zygote, tmp_path, *given)
    assert finished.status == 0, finished.output
    found = table(only_run(tmp_path))
    assert 0 < found["epsilon", None]["value"] <= 8
    assert found["training_rows", "train"]["value"] == 10
    assert ("rouge_l", "test") not in found
    assert files.read_json(only_run(tmp_path) / "privacy.json")["guarantee"]


@pytest.mark.medium
def test_the_untrained_base_is_an_arm_without_training(
    short: tuple[Path, Finished], rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    finished = run(zygote, tmp_path, *words(rows), "adapter=none")
    assert finished.status == 0, finished.output
    found, trained = table(only_run(tmp_path)), table(short[0])
    assert ("steps", "train") not in found
    assert math.log(found["perplexity", "test"]["value"] / trained["perplexity", "test"]["value"]) == pytest.approx(
        trained["nll_gain", "test"]["value"], abs=1e-6
    )


@pytest.mark.medium
def test_the_trained_model_answers_is_measured_and_is_exported_for_peft(
    short: tuple[Path, Finished], rows: Path, zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    asked = tmp_path / "rows.jsonl"
    asked.write_text('{"instruction": "Why?"}\n{"prompt": "Who?", "input": "Anna and Ben."}\n')
    predicted = zygote.run("predict", str(directory), str(asked))
    assert predicted.status == 0, predicted.output
    found = [json.loads(line) for line in predicted.output.splitlines() if line.startswith("{")]
    assert [set(line) for line in found] == [{"answer", "status"}] * 2
    asked.write_text('{"text": "Why?"}\n')
    refused = zygote.run("predict", str(directory), str(asked))
    assert (refused.status, "row 1: no text in column 'instruction'" in refused.output) == (2, True)
    measured = zygote.run("evaluate", str(directory), f"data.path={rows}", "--json")
    assert measured.status == 0, measured.output
    assert str(table(directory)["perplexity", "test"]["value"])[:8] in measured.output
    exported = zygote.run("export", str(directory), str(tmp_path / "adapter"))
    assert exported.status == 0, exported.output
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt.txt"}
    assert (tmp_path / "adapter" / "prompt.txt").read_text() == "{instruction}\n\n"
    from safetensors.numpy import load_file

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    modules = {name.split(".")[-3] for name in weights}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(np.abs(value).sum() > 0 for name, value in weights.items() if "lora_B" in name)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("llm=tiny",), "llm: nobody is asked without a judge"),
        (("task.judge_required=true",), "task.judge_required=true: there is no judge"),
        (("task.judge=single",), "task.judge=single needs a model to ask"),
        (("task.judge=single", "llm=tiny", "task.questions=null"), "task.judge=single needs questions"),
        (("task.judge=pairwise", "llm=tiny"), "task.judge=pairwise needs the answers of another run"),
        (("task.compare_with=RUN",), "task.compare_with names answers that nobody compares"),
        (("task.judge=triple", "llm=tiny"), "task.judge: 'triple' is not one of none, pairwise, single"),
        (("adapter=none", "privacy=dp_sgd"), "privacy=dp_sgd: adapter=none trains nothing"),
        (("data.template=vicuna",), "data.template: 'vicuna' is not one of"),
        (("task.num_generated=-1",), "task.num_generated must be at least 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compose(Words(("task=fedit", *words)))
    assert message in str(refusal.value)


@pytest.mark.torch_free
def test_what_is_not_at_hand_is_told_in_a_line(rows: Path, tmp_path: Path) -> None:
    for given, message in {
        ("model=tiny",): "model=tiny is an encoder, and task=fedit trains a causal language model",
        ("data=strategyqa",): "data: 'strategyqa' is data of another kind",
        ("task.only_client=7", "data=instructions", f"data.path={rows}"): "of this client; there are 0, 1, 2",
        ("task.judge=pairwise", "llm=tiny", f"task.compare_with={tmp_path}"): "is no run directory",
        ("task.questions=nowhere.jsonl",): "task.questions: no file nowhere.jsonl",
    }.items():
        config = composed("task=fedit", "scale=smoke", *given)
        entry = registry.entry_of(config)
        with pytest.raises(UsageError) as refusal:
            entry.contents(config, entry.inputs(config))
        assert message in str(refusal.value)


@pytest.mark.medium
def test_what_the_model_cannot_do_is_told_in_a_line(zygote: Zygote, tmp_path: Path) -> None:
    for word, message in {
        "adapter.target_modules=[qkv]": "adapter.target_modules: ",
        "task.max_new_tokens=2000": "with model.max_length=512 it exceeds the 2,048 tokens",
        "model.max_length=8": "rows has a token to predict in its first 8 tokens",
    }.items():
        refused = run(zygote, tmp_path, word)
        assert (refused.status, message in refused.output) == (2, True), refused.output
        assert "Traceback" not in refused.output
