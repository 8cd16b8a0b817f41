"""Math questions: files of every form, bad rows, splits, leaks, and the embedded extract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from privlm.runners.llm_adapters.math_data import OWN_TEST, MathData, load
from privlm.runners.llm_adapters.questions import Question, read_questions
from support.composed import composed

from privlm.data.contamination import normalised, overlap
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

CHOICES = "Pick. Answer Choices: (A) 1 (B) 2 (C) 3 (D) P (A) (E) 5"


def config(*words: str) -> Any:
    """The data group of a run; words of single fields are laid over it, which is quicker than composing again."""
    group = composed("task=llm_adapters", *(word for word in words if not word.startswith("data."))).data
    changed = OmegaConf.create(OmegaConf.to_container(group))
    changed.merge_with_dotlist([word.removeprefix("data.") for word in words if word.startswith("data.")])
    return changed


def read(path: Path) -> list[Question]:
    return read_questions(path, config())


def rows(num: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is {n} + {n}, said the teacher?",
            "rationale": f"{n} + {n} = {2 * n}.",
            "answer": str(2 * n),
        }
        | more
        for n in range(num)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# --- one row ----------------------------------------------------------------------------------------------


def test_a_row_of_the_release_is_kept_as_it_is(tmp_path: Path) -> None:
    row = {"instruction": " 2 apples? ", "input": "", "output": "\nA: 2.", "answer": "2.0"}
    (question,) = read(write(tmp_path / "a.json", [row]))
    assert (question.instruction, question.output, question.answer, question.number) == (
        " 2 apples? ",
        "\nA: 2.",
        "2.0",
        2,
    )
    assert question.where == f"{tmp_path / 'a.json'} row 1"


def test_rows_of_mawps_and_gsm8k_are_read_as_they_are(tmp_path: Path) -> None:
    mawps = {"id": 7, "original_text": "How many?", "segmented_text": "", "equation": "X=(22.0-14.0)", "ans": 8.0}
    (question,) = read(write(tmp_path / "mawps.json", [mawps]))
    assert (question.answer, question.output, question.has_rationale) == (
        "8.0", "(22.0-14.0) = 8. The answer is 8.", False,
    )  # fmt: skip
    gsm = {"question": "How many?", "answer": "She has 2*3=<<2*3=6>>6.\n#### 1,006"}
    (question,) = read(write(tmp_path / "gsm.jsonl.json", [gsm]))
    assert (question.answer, question.has_rationale) == ("1006.0", True)
    assert question.output == "She has 2*3=<<2*3=6>>6.\n#### 1006.0"


def test_a_choice_has_five_options_whatever_stands_in_the_question(tmp_path: Path) -> None:
    whole = "P (A) = 0.2. Answer Choices: (A) 1 (B) 2 (C) 3 (D) 4 (E) 5"
    (question,) = read(write(tmp_path / "a.json", [{"instruction": whole, "answer": "(D)"}]))
    assert (question.answer, question.options) == ("D", ("1", "2", "3", "4", "5"))
    assert question.output == "The answer is (D)."


def test_byte_order_marks_line_ends_and_csv_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffquestion,answer\r\n"1, 2?",3\r\n'.encode())
    (question,) = read(tmp_path / "a.csv")
    assert (question.instruction, question.answer) == ("1, 2?", "3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1?", "answer": None}, "row 2: no answer in field 'answer'"),
        ({"question": "1?", "answer": " "}, "row 2: no answer in field 'answer'"),
        ({"question": "1?", "answer": "None"}, "row 2: the text in field 'answer' is neither a number nor a letter"),
        ({"question": "1?", "answer": [1]}, "row 2: no answer in field 'answer'"),
        ({"question": "1?", "answer": "F"}, "row 2: the letter in field 'answer' is none of A, B, C, D, E"),
        ({"question": "1?", "answer": "B"}, "row 2: field 'instruction' does not list five options"),
        ({"question": CHOICES, "answer": "B"}, "row 2: field 'instruction' does not list five options"),
        ({"question": " ", "answer": "1"}, "row 2: no question in field 'instruction'"),
        ({"question": 5, "answer": "1"}, "row 2: no text in field 'instruction'"),
        ({"question": "1?", "answer": "1", "id": 3}, "row 2: field 'id' is that of row 1, too"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", [{"question": "0?", "answer": "0", "id": 3}, row])
    with pytest.raises(UsageError) as refusal:
        read(path)
    assert f"{path} {message}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"question,answer\nna\xefve?,1\n")
    write(tmp_path / "other.json", [{"text": "1?", "answer": "1"}])
    for name, message in {
        "empty.json": "no examples, the file is empty",
        "latin.csv": "line 2: not UTF-8; name it by data.encoding",
        "other.json": "no column 'instruction'",
    }.items():
        with pytest.raises(UsageError) as refusal:
            read(tmp_path / name)
        assert message in str(refusal.value)


# --- a data set -------------------------------------------------------------------------------------------


def both(data: MathData) -> tuple[set[str], set[str]]:
    learnt = {normalised(question.text) for question in data.train}
    return learnt, {normalised(question.text) for questions in data.tests.values() for question in questions}


def test_the_embedded_extract_leaks_nothing() -> None:
    data = load(config("data.test_sets=[MultiArith,gsm8k,AddSub,AQuA,SingleEq,SVAMP,mawps]"))
    assert (len(data.train), len(data.held_out), {len(test) for test in data.tests.values()}) == (300, 100, {25})
    assert all(not (shared.exact_test or shared.gram_test) for shared in data.overlaps.values())
    assert data.content.known
    assert data.content.name == "llm_adapters_mini"
    assert data.marks == ()


def test_a_fifth_of_one_file_is_the_test_set_and_rows_are_held_out_by_their_hash(tmp_path: Path) -> None:
    content = rows(60)
    content += [row | {"question": row["question"].upper()} for row in content]  # the same questions again
    path = write(tmp_path / "own.json", content)
    data = load(config(f"data.path={path}", "data.num_held_out=5"))
    learnt, tested = both(data)
    assert not learnt & tested
    assert list(data.tests) == [OWN_TEST]
    assert len(data.held_out) in (5, 6)
    assert not {normalised(question.text) for question in data.held_out} & (learnt | tested)
    assert (data.content.name, data.content.known) == ("own", False)
    again = load(config(f"data.path={write(tmp_path / 'more.json', content + rows(61)[60:])}", "data.num_held_out=0"))
    assert both(again)[1] >= tested


def test_a_folder_of_the_release_is_split_and_a_leak_is_refused(tmp_path: Path) -> None:
    sets = "data.test_sets=[SVAMP,AddSub]"
    write(tmp_path / "ft-training_set" / "math_data.json", rows(30))
    write(tmp_path / "dataset" / "SVAMP" / "test.json", rows(20)[10:] + rows(50)[45:])
    write(tmp_path / "dataset" / "AddSub" / "test.json", rows(70)[60:])
    words = ("data=llm_adapters", f"data.path={tmp_path}", sets, "data.num_held_out=4", "data.num_test_questions=null")
    data = load(config(*words))
    assert {name: len(test) for name, test in data.tests.items()} == {"SVAMP": 5, "AddSub": 10}
    assert any("SVAMP 10 of 15" in note for note in data.notes)
    with pytest.raises(UsageError) as refusal:
        load(config(*words, "data.split=full"))
    assert "data.allow_leak: test questions stand in the training data (SVAMP" in str(refusal.value)
    leaking = load(config(*words, "data.split=full", "data.allow_leak=true", "data.num_held_out=0"))
    assert leaking.marks == ("leaking",)
    assert leaking.overlaps["SVAMP"].exact_test == leaking.overlaps["SVAMP"].exact_train == 10
    assert any("contamination of SVAMP: 10 of 15 test questions" in note for note in leaking.notes)
    write(tmp_path / "dataset" / "SVAMP" / "test.json", rows(5))
    with pytest.raises(UsageError, match="no test question is left in SVAMP"):
        load(config(*words))


def test_what_is_not_at_hand_is_named_in_one_message(tmp_path: Path) -> None:
    write(tmp_path / "SVAMP" / "test.json", rows(3))
    for words, message in {
        (f"data.path={tmp_path}", "data.test_sets=[SVAMP,AQuA]"): "has no AQuA/test.json, no math_data.json",
        (f"data.path={tmp_path / 'none'}",): "data.path: there is neither a file nor a folder",
        ("data=llm_adapters",): "data.path: name the folder",
        ("data.train_path=none.json",): "data.train_path: no file none.json",
        ("data.num_held_out=400",): "data.num_held_out=400 leaves none of 400 rows",
        ("data=dolly_mini",): "data: 'dolly_mini' is data of another kind",
    }.items():
        with pytest.raises(UsageError) as refusal:
            load(config(*words))
        assert message in str(refusal.value)


def test_a_training_file_of_somebody_is_tested_on_the_embedded_sets(tmp_path: Path) -> None:
    data = load(config(f"data.train_path={write(tmp_path / 'mine.json', rows(30))}", "data.num_held_out=5"))
    assert (len(data.train), len(data.tests)) == (25, 6)
    assert (data.content.name, data.content.known) == ("mine", False)


def test_overlap_counts_each_side() -> None:
    words = [f"w{n}" for n in range(40)]
    train = ["How many ARE there?", "how many are there", " ".join(words[:20]), "else"]
    test = ["How many are there ?", " ".join(words[7:20]), " ".join(words[8:21]), "short"]
    found = overlap(train, test)
    assert (found.exact_train, found.exact_test, found.num_train, found.num_test) == (2, 1, 4, 4)
    assert (found.gram_train, found.gram_test) == (1, 1)  # words 7 to 19 are 13, of which words 8 to 20 lack one
