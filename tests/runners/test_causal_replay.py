"""The authors' recorded answers, scored again through the ordinary pipeline: the figures of their own scorers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from privlm import registry
from privlm.cli import main
from privlm.config import configs_dir

registry.runners_dir()  # makes privlm.runners importable in a plain checkout

from privlm.runners.causal import tuebingen  # noqa: E402
from privlm.runners.causal.items import Question  # noqa: E402
from privlm.runners.causal.sources import Sources  # noqa: E402

pytestmark = pytest.mark.torch_free

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
OUTPUTS = DATA / "kiciman_causal" / "author_outputs"
TOLERANCE = 5e-5

Rows = dict[tuple[str, str], float]
"""(metric, split) -> value."""


@pytest.fixture
def replay(tmp_path: Path) -> Callable[..., tuple[int, Rows]]:
    """Runs the task on a file of recorded answers; returns the exit status and the results."""

    def run(path: Path, *words: str) -> tuple[int, Rows]:
        if not path.exists():
            pytest.skip(f"no {path.name}: the authors' outputs are not at hand")
        status = main(["run", "task=causal", "llm=replay", f"llm.path={path}", f"runs={tmp_path}", *words])
        (directory,) = (tmp_path / "causal").iterdir()
        return status, rows_of(directory)

    return run


def rows_of(directory: Path) -> Rows:
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    assert {row["provenance"] for row in result["rows"]} == {"replayed"}
    return {(row["metric"], row["split"]): row["value"] for row in result["rows"]}


GOLDEN = [
    ("tueb_gpt-3.5-turbo_results", "tuebingen", "task.prompting=two", {
        ("accuracy", ""): 0.8148, ("weighted_accuracy", ""): 0.8288, ("accuracy_upstream", ""): 0.8148,
        ("unparsed", ""): 0, ("baseline_first", ""): 0.7222, ("baseline_first_weighted", ""): 0.6987,
    }),
    ("tueb_gpt-3.5-turbo_system_results", "tuebingen", "task.prompting=agent", {
        ("accuracy", ""): 0.8565, ("weighted_accuracy", ""): 0.8694, ("unparsed", ""): 6,
        ("accuracy_upstream", ""): 0.8611, ("weighted_accuracy_upstream", ""): 0.8694,
    }),
    ("crass_gpt-3.5-turbo_system_results", "crass", "task.parser=strict", {
        ("accuracy", ""): 0.8139, ("accuracy_upstream", ""): 0.8345, ("unparsed", ""): 13, ("unparsed_upstream", ""): 5,
    }),
    ("crass_gpt-3.5-turbo_system_results", "crass", "task.parser=upstream", {("accuracy", ""): 0.8285}),
    ("arctic_gpt-3.5-turbo_system_results_singleprompt_1", "arctic", "task.parser=strict", {
        ("edges", ""): 61, ("nhd", ""): 0.3264, ("nhd_ratio", ""): 0.4312,
        ("edges_upstream", ""): 62, ("nhd_upstream", ""): 0.3333, ("baseline_nhd_upstream", ""): 0.7639,
        ("nhd_ratio_upstream", ""): 0.4364, ("precision_upstream", ""): 0.5, ("recall_upstream", ""): 0.6458,
        ("f1_upstream", ""): 0.5636, ("unparsed_upstream", ""): 6,
        ("empty_graph_nhd", ""): 0.3333, ("empty_graph_nhd_ratio", ""): 1,
    }),
    ("ac_gpt-3.5-turbo_system_results", "vignettes", "task.parser=upstream", {
        ("accuracy_upstream", " necessary"): 0.7, ("accuracy_upstream", " sufficient"): 0.4,
        ("accuracy", " necessary"): 0.6667, ("accuracy", " sufficient"): 0.4, ("unparsed", " necessary"): 1,
        ("baseline_majority", " necessary"): 0.6667, ("baseline_majority", " sufficient"): 0.6,
    }),
    ("ac_gpt-3.5-turbo_system_results_lab", "vignettes_lab", "task.parser=upstream", {
        ("accuracy_upstream", " necessary"): 0.6429, ("accuracy_upstream", " sufficient"): 0.4286,
        ("accuracy", " necessary"): 0.5714, ("accuracy", " sufficient"): 0.4286, ("unparsed", " necessary"): 2,
        ("baseline_majority", " necessary"): 0.6429, ("baseline_majority", " sufficient"): 0.6429,
    }),
    ("neuro_gpt-3.5-turbo_system_results", "neuropathic_pair", "task.parser=strict", {
        ("accuracy", ""): 0.8505, ("accuracy_upstream", ""): 0.8547, ("unparsed", ""): 9, ("unparsed_upstream", ""): 2,
    }),
    ("neuro100_gpt-3.5-turbo_system_results", "neuropathic_graph100", "task.parser=strict", {
        ("precision", ""): 0.6140, ("recall", ""): 0.7, ("f1", ""): 0.6542, ("unparsed", ""): 2,
        ("precision_upstream", ""): 0.6604, ("recall_upstream", ""): 0.7143, ("f1_upstream", ""): 0.6863,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("file", "suite", "setting", "expected"), GOLDEN)
def test_recorded_answers_score_as_published(
    file: str, suite: str, setting: str, expected: Rows, replay: Callable[..., tuple[int, Rows]]
) -> None:
    status, rows = replay(OUTPUTS / f"{file}.jsonl", f"task.suite={suite}", setting)
    assert status == 0
    found = {(metric, part): rows[metric, suite + part] for metric, part in expected}
    assert found == pytest.approx(expected, abs=TOLERANCE)


# --- the rows of recorded models ------------------------------------------------------------------------------------


def recorded_rows() -> list[tuple[str, str, list[str]]]:
    """(table, row, words) of each row that is filled by recorded answers."""
    return [
        (path.stem, row["name"], row["run"])
        for path in sorted((Path(configs_dir()) / "table").glob("causal_*.yaml"))
        for row in yaml.safe_load(path.read_text())["rows"]
        if "llm=replay" in (row.get("run") or ())
    ]


def test_a_row_is_filled_by_the_answers_of_its_own_model() -> None:
    for table, name, words in recorded_rows():
        (model,) = (word.removeprefix("llm.model=") for word in words if word.startswith("llm.model="))
        (path,) = (word for word in words if word.startswith("llm.path="))
        assert model in name.removeprefix("graph: ").split(",")[0], (table, name)
        assert model in path, (table, name)


FILLED = ("text-davinci-003", "gpt-4, single prompt")


@pytest.mark.parametrize("row", FILLED)
def test_recorded_answers_of_any_path_fill_their_row(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers in the form of the authors' files, all of them right, and their row of the table."""
    spec = yaml.safe_load((Path(configs_dir()) / "table" / "causal_tuebingen.yaml").read_text())
    spec["rows"] = [one for one in spec["rows"] if one["name"] == row]  # the others take their time
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "one_row.yaml").write_text(yaml.safe_dump(spec))
    words = spec["rows"][0]["run"]
    model = row.partition(",")[0]
    suite = tuebingen.load(Sources(None), "single" if "single" in row else "two")
    lines = [{"prompt": item.question.prompt, "result": _reply(model, item.question)} for item in suite.items]
    path = tmp_path / "downloaded.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = [f"llm.path={path}" if word.startswith("llm.path=") else word for word in words]
    assert main(["run", *changed, f"runs={tmp_path / 'runs'}"]) == 0
    capsys.readouterr()
    options = ["--config-dir", str(tmp_path), "--runs", str(tmp_path / "runs"), "--format", "md"]
    assert main(["tables", "one_row", *options]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {row} |")]
    (accuracy,) = (line for line in shown if "| accuracy |" in line)
    assert "1.0000" in accuracy
    assert "(replayed)" in accuracy
    (answers,) = (line for line in shown if "| answers |" in line)
    assert f"{len(lines)}" in answers
    assert "(replayed)" in answers


def _reply(model: str, question: Question) -> dict[str, Any]:
    if question.options:
        message = {"role": "assistant", "content": f"<Answer>{question.truth}</Answer>"}
        return {"model": f"{model}-0314", "choices": [{"message": message, "finish_reason": "stop"}]}
    return {"model": model, "choices": [{"text": f"\n\n{question.truth}", "finish_reason": "length"}]}


def test_single_prompt_has_only_the_authors_verdicts() -> None:
    """No raw text of these answers is at hand; their 0/1 table still fixes how pairs are weighted."""
    import csv

    import numpy as np
    from privlm.runners.causal.tuebingen import read_pairs

    from privlm.metrics.shares import share

    path = OUTPUTS / "tueb_gpt-3.5-turbo_system_results_singleprompt.csv"
    if not path.exists():
        pytest.skip("the authors' outputs are not at hand")
    right = {row["pairid"]: float(row["CorrectCause"]) for row in csv.DictReader(path.open())}
    pairs = read_pairs(Sources(None))
    credits = np.array([right[pair.id] for pair in pairs])
    weights = np.array([pair.weight for pair in pairs])
    assert share(credits).value == pytest.approx(0.8889, abs=TOLERANCE)
    assert share(credits, weights=weights).value == pytest.approx(0.9215, abs=TOLERANCE)
    assert weights.sum() == pytest.approx(38.9979)


def test_order_of_the_lines_does_not_matter(tmp_path: Path, replay: Callable[..., tuple[int, Rows]]) -> None:
    path = OUTPUTS / "ac_gpt-3.5-turbo_system_results.jsonl"
    if not path.exists():
        pytest.skip("the authors' outputs are not at hand")
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join(f"{line}\n" for line in reversed(path.read_text().splitlines())))
    status, rows = replay(backwards, "task.suite=vignettes")
    assert status == 0
    assert rows["accuracy_upstream", "vignettes necessary"] == pytest.approx(0.7)


def test_fewer_answers_than_items_name_the_missing(
    tmp_path: Path, replay: Callable[..., tuple[int, Rows]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = OUTPUTS / "ac_gpt-3.5-turbo_system_results.jsonl"
    if not path.exists():
        pytest.skip("the authors' outputs are not at hand")
    short = tmp_path / "short.jsonl"
    short.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    status = main(["run", "task=causal", "task.suite=vignettes", "llm=replay", f"llm.path={short}", f"runs={tmp_path}"])
    assert status == 2
    message = capsys.readouterr().err
    assert "no answer for 2 of 30 requests: vignettes 13 sufficient, vignettes 14 sufficient" in message
    assert "Traceback" not in message
