"""Task llm_adapters from the command line: a whole run, kills, privacy, the base of another run, the trained model at
work, refusals, what is written and what never is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from privlm.runners.llm_adapters.math_data import load
from support.composed import composed
from support.runs import outcome
from support.zygote import Finished, Zygote

from privlm import files
from privlm.cli.compose import Words, compose
from privlm.data.contamination import normalised
from privlm.data.held_out import is_held_out
from privlm.errors import UsageError

SHORT = (
    "data.test_sets=[AQuA,SVAMP]", "data.num_test_questions=3", "data.num_held_out=32", "data.max_train_examples=12",
    "trainer.steps=6", "trainer.checkpoint_every=2", "trainer.evaluate_every=3", "task.max_new_tokens=6",
)  # fmt: skip
SETS = ("AQuA", "SVAMP")


def run(zygote: Zygote, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    return zygote.run("run", "task=llm_adapters", "scale=smoke", f"runs={runs}", *words, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "llm_adapters").iterdir()
    return directory


def result(directory: Path) -> Any:
    return json.loads((directory / "result.json").read_text())


def table(directory: Path) -> dict[tuple[str, str | None], Any]:
    return {(row["metric"], row["split"]): row for row in result(directory)["rows"]}


def answers(directory: Path) -> dict[str, list[Any]]:
    """File of a stage -> its lines, without seals, in the order of their items."""
    found = {}
    for path in sorted(directory.glob("stages/*/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{key: line[key] for key in line if key != files.SEAL} for line in lines]
        found[f"{path.parent.name}/{path.name}"] = sorted(kept, key=lambda line: line["item"])
    assert found
    return found


@pytest.fixture(scope="module")
def short(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    runs = tmp_path_factory.mktemp("short")
    finished = run(zygote, runs, *SHORT)
    assert finished.status == 0, finished.output
    return only_run(runs), finished


@pytest.mark.medium
def test_every_figure_is_there_with_its_n_and_interval(short: tuple[Path, Finished]) -> None:
    directory, finished = short
    found = table(directory)
    for name in SETS:
        for prefix in ("", "base_"):
            for extractor in ("strict", "upstream"):
                accuracy = found[f"{prefix}accuracy_{extractor}", name]
                assert accuracy["n"] == 3
                assert accuracy["ci_low"] <= accuracy["value"] <= accuracy["ci_high"]
            for kind in ("unreadable_strict", "unreadable_upstream", "truncated", "empty"):
                assert found[f"{prefix}{kind}", name]["n"] == 3
        assert found["contamination_exact", name]["value"] == 0
        assert found["contamination_13gram_train", name]["n"] == 12
        assert found["questions", name]["value"] == 3
    assert found["accuracy_strict", "average"]["n"] == 6
    assert -1 <= found["gain_over_base", "average"]["ci_low"] <= found["gain_over_base", "average"]["ci_high"] <= 1
    assert 0 <= found["mcnemar_p", "all"]["value"] <= 1
    gain = found["log_likelihood_gain", "held_out"]
    after, before = (found[name, "held_out"]["value"] for name in ("log_likelihood", "log_likelihood_before"))
    assert gain["value"] == pytest.approx(after - before)
    assert (gain["n"], gain["ci_low"] < gain["value"] < gain["ci_high"]) == (32, True)
    assert gain["value"] > 0  # six steps teach a random model of bytes which bytes there are
    assert found["trainable_parameters", None]["value"] == 1792
    assert {row["provenance"] for row in found.values()} == {"smoke"}
    assert result(directory)["marks"] == ["subset"]
    assert "training rows cut to 512 tokens" in finished.output
    steps = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row["value"] for row in steps if (row["name"], row["split"]) == ("loss", "held_out")}
    assert logged[6] == pytest.approx(-after, abs=1e-5)


@pytest.mark.medium
def test_no_question_and_no_worked_answer_is_written(short: tuple[Path, Finished]) -> None:
    directory, _ = short
    data = load(composed("task=llm_adapters", "scale=smoke", *SHORT).data)
    texts = [data.train[0].text, data.train[0].output, data.held_out[0].output, data.tests["AQuA"][0].text]
    content = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    assert not [text for text in texts if any(text.strip()[:40].encode() in one for one in content)]


@pytest.mark.medium
@pytest.mark.parametrize("share", [0.3, 0.93])
def test_a_killed_run_goes_on_where_it_was_and_ends_equal(
    share: float, short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, whole = short
    killed = run(zygote, tmp_path, *SHORT, fault=("kill", round(share * whole.writes)))
    assert killed.status == -9, killed.output
    before = sorted((only_run(tmp_path) / "stages").glob("*/*.jsonl"))
    kept = {path: path.read_bytes() for path in before}
    assert kept
    finished = run(zygote, tmp_path, *SHORT)
    assert finished.status == 0, finished.output
    assert outcome(only_run(tmp_path)) == outcome(directory)
    assert answers(only_run(tmp_path)) == answers(directory)
    whole_lines = [content[: content.rfind(b"\n") + 1] for content in kept.values()]
    assert all(path.read_bytes().startswith(lines) for path, lines in zip(kept, whole_lines, strict=True))


@pytest.mark.medium
def test_privacy_is_the_ordinary_switch(zygote: Zygote, tmp_path: Path) -> None:
    words = (
        "privacy=dp_sgd",
        "task.evaluate_base=false",
        "task.prompt_style=llm_adapters_verbatim",
        "task.num_beams=2",
    )
    finished = run(zygote, tmp_path, *SHORT, *words, "task.train_on_inputs=false")
    assert finished.status == 0, finished.output
    found = table(only_run(tmp_path))
    assert 0 < found["epsilon", None]["value"] <= 8
    assert ("gain_over_base", "average") not in found
    assert files.read_json(only_run(tmp_path) / "privacy.json")["guarantee"]


@pytest.mark.medium
def test_the_base_of_another_run_stands_in_for_its_own(
    short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    finished = run(zygote, tmp_path, *SHORT, f"task.base_run={directory}")
    assert finished.status == 0, finished.output
    assert not (only_run(tmp_path) / "stages" / "base" / "AQuA.jsonl").exists()
    found, its = table(only_run(tmp_path)), table(directory)
    for figure in (("gain_over_base", "average"), ("base_accuracy_strict", "AQuA")):
        assert found[figure] == its[figure]
    for words, message in {
        ("task.max_new_tokens=7",): "has task.max_new_tokens=6, and this run 7",
        ("data.num_test_questions=4",): "has answered 3 of the 4 questions of AQuA",
        ("task.evaluate_base=true",): "one leaves the other without effect",
    }.items():
        refused = run(zygote, tmp_path / "refused", *SHORT, f"task.base_run={directory}", *words)
        assert (refused.status, message in refused.output) == (2, True), refused.output
    nowhere = run(zygote, tmp_path / "refused", f"task.base_run={tmp_path}")
    assert (nowhere.status, "is no run directory" in nowhere.output) == (2, True)


# --- the trained model at work ----------------------------------------------------------------------------


@pytest.mark.medium
def test_it_answers_questions_and_is_measured_on_others(
    short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    questions = [{"question": "1 + 1?"}, {"instruction": "Pick. Answer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    predicted = zygote.run("predict", str(directory), str(path))
    assert predicted.status == 0, predicted.output
    lines = [json.loads(line) for line in predicted.output.splitlines() if line.startswith("{")]
    assert [set(line) for line in lines] == [{"answer", "text", "status"}] * 2
    path.write_text('{"question": "1 + 1?"}\n{"text": "2 + 2?"}\n')
    refused = zygote.run("predict", str(directory), str(path))
    assert (refused.status, "row 2: no question in column 'instruction'" in refused.output) == (2, True)
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"question": f"{n} + 1?", "answer": n + 1} for n in range(40)]))
    measured = zygote.run(
        "evaluate", str(directory), f"data.path={own}", "data.num_held_out=0", "data.num_test_questions=2", "--json"
    )
    assert measured.status == 0, measured.output
    assert '"n": 2' in measured.output


BARE = """
import sys, torch, transformers, peft
shape = transformers.LlamaConfig(**eval(sys.argv[2]))
model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM(shape), sys.argv[1])
assert "privlm" not in sys.modules
print(sum(tensor.abs().sum().item() for name, tensor in model.named_parameters() if "lora_B" in name) > 0)
"""


@pytest.mark.medium
def test_an_exported_adapter_is_loaded_by_peft_alone(
    short: tuple[Path, Finished], zygote: Zygote, tmp_path: Path
) -> None:
    directory, _ = short
    exported = zygote.run("export", str(directory), str(tmp_path / "adapter"))
    assert exported.status == 0, exported.output
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "prompt.txt"}
    assert (tmp_path / "adapter" / "prompt.txt").read_text().endswith("{question}\n\n### Response:\n")
    config = composed("task=llm_adapters", "scale=smoke").model
    shape = dict(config.random) | {"vocab_size": 256 + 3}
    shape.pop("model_type")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    assert weights.stat().st_size < 2 * 4 * 1792
    words = [sys.executable, "-c", BARE, str(tmp_path / "adapter"), repr(shape)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=False)
    assert loaded.stdout == "True\n", loaded.stderr


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.torch_free
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task.prompt_mismatch=upstream",), "task.prompt_mismatch=upstream is a fault of task.prompt_style="),
        (("adapter=none", "privacy=dp_sgd"), "privacy=dp_sgd: adapter=none trains nothing"),
        (("llm=tiny",), "llm: task=llm_adapters asks nobody but the model it trains"),
        (("data.test_sets=[]",), "data.test_sets: name at least one set, and each once"),
        (("data.test_sets=[SVAMP,SVAMP]",), "data.test_sets: name at least one set, and each once"),
        (("data.test_sets=[svamp]",), "data.test_sets: 'svamp' is not one of"),
        (("data.split=half",), "data.split: 'half' is not one of v1_80_20, full"),
        (("task.prompt_style=vicuna",), "task.prompt_style: 'vicuna' is not one of"),
        (("task.num_beams=0",), "task.num_beams must be greater than 0"),
        (("model.dtype=int8",), "model.dtype: 'int8' is not one of"),
    ],
)
def test_wrong_settings_are_refused_by_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compose(Words(("task=llm_adapters", *words)))
    assert message in str(refusal.value)


@pytest.mark.medium
def test_what_cannot_be_run_is_told_in_a_line_and_nothing_is_written(zygote: Zygote, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([{"question": f"{n}?", "answer": "None" if n == 7 else n} for n in range(20)]))
    for words, message in {
        (f"data.path={bad}",): f"{bad} row 8: the text in field 'answer' is neither a number nor a letter",
        ("model=tiny",): "model=tiny is an encoder, and task=llm_adapters trains a causal language model",
        ("data=dolly_mini",): "data: 'dolly_mini' is data of another kind",
    }.items():
        refused = run(zygote, tmp_path / "runs", *words)
        assert (refused.status, message in refused.output) == (2, True), refused.output
        assert "Traceback" not in refused.output
        assert not (tmp_path / "runs").exists()


@pytest.mark.medium
def test_a_question_that_does_not_fit_the_model_is_named_by_file_and_row(zygote: Zygote, tmp_path: Path) -> None:
    long = [f"{n}? " + "long " * 20_000 for n in range(20)]
    place, text = next((n, text) for n, text in enumerate(long) if is_held_out(normalised(text)))
    rows = [{"question": text if n == place else f"{n}?", "answer": n} for n in range(60)]
    own = tmp_path / "own.json"
    own.write_text(json.dumps(rows))
    refused = run(zygote, tmp_path / "runs", f"data.path={own}", "data.num_held_out=0", "data.num_test_questions=null")
    assert refused.status == 2
    assert f"{own} row {place + 1}: the prompt of field 'instruction' has " in refused.output
    too_many = run(zygote, tmp_path / "runs", *SHORT[:-1], "task.max_new_tokens=2000")
    assert too_many.status == 2
    assert "AQuA/test.json row 1: the prompt of field 'instruction' has" in too_many.output
    assert "Traceback" not in refused.output + too_many.output
