"""Questions and backgrounds: our layout, FM2's, bad rows by file and field, splits, contamination, benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from privlm.runners.pkg import config as task_config
from privlm.runners.pkg.questions_data import Questions, load
from support.composed import composed

from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

FM2 = Path(__file__).resolve().parents[4] / "shared" / "data" / "fm2"
OPTIONS = ["iron", "vitamin C", "vitamin K"]


def config(*words: str) -> Any:
    return composed("task=pkg", *words).data


def rows(num: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": str(n), "question": f"What is number {n} of the list?", "answer": f"thing {n}",
         "background": f"The list holds thing {n}."} | more
        for n in range(num)
    ]  # fmt: skip


def write(path: Path, content: list[dict[str, Any]], *, end: str = "\n", mark: str = "") -> Path:
    path.write_bytes((mark + "".join(json.dumps(row) + end for row in content)).encode())
    return path


def own(path: Path, *words: str) -> Questions:
    return load(config("data=pkg_jsonl", f"data.path={path}", *words))


def test_the_embedded_claims_are_balanced_and_share_no_page() -> None:
    data = load(config())
    assert (len(data.train), len(data.test)) == (200, 60)
    assert data.content.known
    assert sum(row.answers == ("true",) for row in data.test) == 30
    assert sum(row.answers == ("true",) for row in data.train) == 100
    assert not {row.group for row in data.train} & {row.group for row in data.test}
    assert len({row.group for row in data.test}) == 60
    assert data.leak.exact == data.leak.group == data.leak.gram == 0
    assert all(row.background and row.passages for row in data.test)


@pytest.mark.skipif(not FM2.is_dir(), reason=f"needs FM2 as released in {FM2}")
def test_fm2_as_released_is_the_data_set_of_its_name() -> None:
    whole = ("data.max_train_examples=null", "data.num_test_questions=null")
    data = load(config("data=fm2", f"data.path={FM2}", *whole))
    assert (len(data.train), len(data.test)) == (1169, 1380)
    assert data.content.known
    assert data.leak.exact == data.leak.group == 0
    assert len(data.passages) == 2226  # distinct backgrounds; 2,634 distinct sentences


def test_one_file_of_ones_own_is_split_by_its_questions(tmp_path: Path) -> None:
    data = own(write(tmp_path / "own.jsonl", rows(40)))
    assert len(data.train) + len(data.test) == 40
    assert 2 <= len(data.test) <= 16
    assert not data.content.known
    grouped = own(write(tmp_path / "grouped.jsonl", [row | {"group": f"g{n % 8}"} for n, row in enumerate(rows(40))]))
    assert not {row.group for row in grouped.train} & {row.group for row in grouped.test}


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    plain = own(write(tmp_path / "plain.jsonl", rows()))
    other = own(write(tmp_path / "other.jsonl", rows(), end="\r\n", mark="\ufeff"))
    assert [row.question for row in plain.test] == [row.question for row in other.test]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": None}, "line 3: no text in field 'id'"),
        ({"id": "1"}, "line 3: field 'id' is that of"),
        ({"question": ""}, "line 3: no text in field 'question'"),
        ({"question": 7}, "line 3: no text in field 'question'"),
        ({"answer": None}, "line 3: no answer in field 'answer'"),
        ({"answer": ""}, "line 3: no answer in field 'answer'"),
        ({"answer": []}, "line 3: no answer in field 'answer'"),
        ({"background": ["a"]}, "line 3: no text in field 'background'"),
        ({"options": "A B"}, "line 3: field 'options' is no list of texts"),
        ({"options": ["one"]}, "line 3: field 'options' has 1 texts; a choice has 2 to 10"),
        ({"options": OPTIONS, "answer": "zinc"}, "line 3: field 'answer' is neither one of its options nor a letter"),
        ({"options": OPTIONS, "answer": "D"}, "line 3: field 'answer' is neither one of its options nor a letter"),
        ({"passages": "text"}, "line 3: field 'passages' is no list of texts"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = rows()
    content[2] |= row
    with pytest.raises(UsageError) as refusal:
        own(write(tmp_path / "own.jsonl", content))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_json_lines_file_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", rows())
    path.write_text(path.read_text() + '{"id": "x", ')
    with pytest.raises(UsageError, match=r"own.jsonl line 11: not JSON"):
        own(path)
    with pytest.raises(UsageError, match=r"no column 'question'"):
        own(write(tmp_path / "other.jsonl", [{"id": "1", "answer": "x"}]))


def test_labels_of_claims_are_four_words(tmp_path: Path) -> None:
    claims = [row | {"answer": ("SUPPORTS", "REFUTES", True, "false")[n % 4]} for n, row in enumerate(rows(20))]
    data = own(write(tmp_path / "claims.jsonl", claims), "data.kind=claim")
    assert {row.answers for row in (*data.train, *data.test)} == {("true",), ("false",)}
    claims[4]["answer"] = "NOT ENOUGH INFO"
    with pytest.raises(UsageError, match=r"line 5: field 'answer' of a claim is none of SUPPORTS, REFUTES"):
        own(write(tmp_path / "claims.jsonl", claims), "data.kind=claim")
    row = {"id": "1", "text": "A claim.", "label": "MAYBE", "gold_evidence": [{"text": "Evidence."}]}
    with pytest.raises(UsageError, match=r"line 1: field 'label' of a claim"):
        own(write(tmp_path / "fm2.jsonl", [row]), "data.kind=claim")
    with pytest.raises(UsageError, match=r"line 1: field 'gold_evidence' is no list"):
        own(write(tmp_path / "fm2.jsonl", [row | {"label": "SUPPORTS", "gold_evidence": "text"}]), "data.kind=claim")


def test_the_answer_of_a_choice_is_its_letter_by_letter_or_text(tmp_path: Path) -> None:
    content = rows(10, options=OPTIONS, answer="vitamin C")
    content[3]["answer"] = "B"
    data = own(write(tmp_path / "own.jsonl", content))
    assert {row.answers for row in (*data.train, *data.test)} == {("B",)}


def test_rows_without_a_background_are_not_learnt_and_counted(tmp_path: Path) -> None:
    content = [row if n % 2 else row | {"background": " "} for n, row in enumerate(rows(30))]
    data = own(write(tmp_path / "own.jsonl", content))
    assert all(row.background for row in data.train)
    assert any("have no background: left out" in note for note in data.notes)
    with pytest.raises(UsageError, match="0 rows to learn from"):
        own(write(tmp_path / "none.jsonl", rows(30, background="")))


@pytest.mark.parametrize("shared", ["question", "group"])
def test_test_items_in_the_alignment_set_are_refused_or_marked(shared: str, tmp_path: Path) -> None:
    train, test = rows(5, group="page of train"), rows(5, group="page of test")
    for n, row in enumerate(test):
        row |= {"id": f"t{n}", "question": f"Which is {n}?"}
    test[1][shared] = train[2][shared]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.jsonl", test)
    with pytest.raises(UsageError, match=r"data.allow_leak: of 5 test items"):
        own(tmp_path)
    assert own(tmp_path, "data.allow_leak=true").marks == ("leaking",)


def test_a_guide_learns_no_question_of_another_benchmark(tmp_path: Path) -> None:
    content = rows(30)
    for row in content:
        row |= {"group": f"g{row['id']}"}
    content[7]["question"] = "Are more people today related to Genghis Khan than Julius Caesar?"  # of StrategyQA
    learnt = [{**row, "group": "x"} for row in content]  # one group: all on one side
    write(tmp_path / "train.jsonl", learnt)
    write(tmp_path / "test.jsonl", [row | {"id": f"t{row['id']}", "question": f"{row['id']}?"} for row in rows(3)])
    with pytest.raises(UsageError, match=r"train.jsonl line 8: field 'question' is one of StrategyQA, CRASS or BIG-b"):
        own(tmp_path)
    learnt[7]["question"] = (
        "A police officer calms down a hostage-taker. What would have happened if the police officer had not calmed the hostage-taker?"  # noqa: E501  of CRASS
    )
    write(tmp_path / "train.jsonl", learnt)
    with pytest.raises(UsageError, match="CRASS"):
        own(tmp_path)


@pytest.mark.parametrize("name", ["fm2", "nq_table", "medmcqa", "scienceqa", "pkg_jsonl"])
def test_data_that_are_not_at_hand_say_how_they_are_obtained(name: str, tmp_path: Path) -> None:
    whole = composed("task=pkg", "scale=smoke", f"data={name}")
    with pytest.raises(UsageError, match=rf"data '{name}' is not found: data.path="):
        task_config.inputs(whole)
    with pytest.raises(UsageError, match="there is neither a file nor a folder"):
        task_config.inputs(composed("task=pkg", "scale=smoke", f"data={name}", "data.path=/nowhere/at/all"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("task.guides=[]",), "task.guides: name at least one guide"),
        (("task.guides=[pkg,pkg]",), "task.guides: name at least one guide, and each once"),
        (("task.guides=[oracle]",), "task.guides: 'oracle' is not one of"),
        (("~llm",), "llm: task=pkg needs a black box to ask"),
        (("task.guides=[none,gold]", "privacy=dp_sgd"), "privacy: only the guide is trained"),
        (("task.guides=[none]", "task.guide_run=x"), "task.guide_run names a guide that nothing asks"),
        (("task.on_leak=ignore",), "task.on_leak: 'ignore' is not one of"),
        (("task.background_max_tokens=0",), "task.background_max_tokens must be greater than 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        composed("task=pkg", *words)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "batch_size", "epochs"), [("fm2", 64, 3), ("nq_table", 32, 10), ("medmcqa", 32, 3), ("scienceqa", 32, 5)]
)
def test_the_paper_recipe_is_the_published_one(data: str, batch_size: int, epochs: int) -> None:
    """Table 6 of arXiv 2305.04757."""
    whole = composed("task=pkg", "scale=paper", f"data={data}")
    trainer = whole.trainer
    assert (trainer.batch_size, trainer.epochs, trainer.steps) == (batch_size, epochs, None)
    assert (trainer.optimizer, trainer.learning_rate) == ("adamw", 2e-5)
    assert (trainer.schedule, trainer.warmup_share) == ("cosine", 0.1)
    assert (whole.model.name, whole.adapter.name, whole.privacy.mechanism) == ("llama_7b", "full", "none")
