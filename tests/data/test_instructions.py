"""Instruction data: own files in several shapes, the embedded rows of dolly, prompts, and splits that stay."""

import json
from collections import Counter
from pathlib import Path

import pytest

from privlm.config import defaults
from privlm.data.instructions import TEMPLATES, Instruction, load_instructions
from privlm.data.locate import EMBEDDED_DOLLY, locate_instructions
from privlm.data.schema import InstructionData
from privlm.data.text_classification import load
from privlm.errors import UsageError

pytestmark = pytest.mark.torch_free

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
SECRET = "my secret"
ROWS = [{"instruction": f"Say {i}.", "input": "" if i % 2 else f"as {i}", "output": f"{i}!"} for i in range(30)]


def config(name="instructions", **changes):
    return defaults(InstructionData, "data", name, **changes)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load_rows(path, rows, **changes):
    data = load_instructions(config(path=write(path, rows), **changes))
    return data, [*data.train, *data.evaluation["test"]]


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"no shared data beside the checkout: {name}")
    return str(SHARED / name)


def test_the_embedded_rows_are_25_of_each_category():
    data = load_instructions(config("dolly_mini"))
    rows = data.train + data.evaluation["test"]
    assert (len(data.train), len(data.evaluation["test"])) == (161, 39)
    assert set(Counter(row.category for row in rows).values()) == {25}
    assert len(data.categories) == 8
    assert data.clients == ()
    assert max(len(row.instruction + row.context + row.response) for row in rows) <= 1000


def test_changed_embedded_rows_are_refused(tmp_path, monkeypatch):
    changed = tmp_path / EMBEDDED_DOLLY.name
    changed.write_bytes(EMBEDDED_DOLLY.read_bytes()[:-2])
    monkeypatch.setattr("privlm.data.locate.EMBEDDED_DOLLY", changed)
    with pytest.raises(UsageError, match="sha256 differs"):
        locate_instructions(config("dolly_mini"))


def test_dolly_with_its_clients_and_alpaca_are_read():
    dolly = load_instructions(config("dolly", path=shared("dolly")))
    assert (len(dolly.train), len(dolly.evaluation["test"]), len(dolly.categories)) == (14931, 80, 8)
    assert dolly.clients == tuple("0123456789")
    assert dolly.content.known
    alpaca = load_instructions(config("alpaca", path=shared("instruct/alpaca_tiny.json")))
    assert len(alpaca.train) + len(alpaca.evaluation["test"]) == 100


def test_one_row_more_moves_no_other_and_equal_questions_stay_together(tmp_path):
    before, _ = load_rows(tmp_path / "a.jsonl", ROWS)
    again = [row | {"output": "another answer"} for row in ROWS]
    after, _ = load_rows(tmp_path / "b.jsonl", [{"instruction": "New", "output": "row"}, *again, *ROWS])
    assert set(before.train) < set(after.train)
    assert set(before.evaluation["test"]) <= set(after.evaluation["test"])
    asked = [{(row.instruction, row.context) for row in rows} for rows in (after.train, after.evaluation["test"])]
    assert not asked[0] & asked[1]


def test_names_of_columns_are_declared_and_own_names_can_be(tmp_path):
    rows = [{"frage": f"q {i}", "antwort": f"a {i}", "thema": "x"} for i in range(30)]
    aliases = {"frage": "instruction", "antwort": "response", "thema": "category"}
    data, found = load_rows(tmp_path / "a.jsonl", rows, aliases=aliases)
    assert {(row.instruction, row.context, row.response) for row in found} == {
        (f"q {i}", "", f"a {i}") for i in range(30)
    }
    assert data.categories == ("x",)


def test_rows_without_instruction_or_response_are_counted(tmp_path):
    empty = [{"instruction": "Say it.", "output": " "}, {"instruction": "Say.", "output": None}, {"output": "Said."}]
    data, found = load_rows(tmp_path / "a.jsonl", [*ROWS, *empty])
    assert len(found) == len(ROWS)
    assert data.notes[0] == "3 rows without instruction or response left out"


def test_splits_are_read_from_files_and_each_is_counted(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "validation.jsonl", [*ROWS[:2], {"instruction": "?", "output": ""}])
    data = load_instructions(config(path=str(tmp_path), eval_splits=["dev"]))
    assert (len(data.train), len(data.evaluation["dev"])) == (30, 2)
    assert data.notes == ("dev: 1 rows without instruction or response left out",)


def test_clients_are_sorted_by_number_and_empty_ones_are_none(tmp_path):
    rows = [row | {"client": i % 12 if i % 5 else None, "category": ""} for i, row in enumerate(ROWS)]
    data, found = load_rows(tmp_path / "a.jsonl", rows)
    assert data.clients == tuple(str(i) for i in range(12))
    assert data.categories == ()
    assert None in {row.client for row in found}


def test_conversations_give_their_last_answer_with_what_was_said_before(tmp_path):
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"), ("assistant", "So.")]
    messages = [{"role": role, "content": content} for role, content in said]
    rows = [{"messages": messages, "id": 1}, {"messages": messages[1:3]}, {"messages": messages[:4]}, {"messages": []}]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows[:1])
    data = load_instructions(config(path=str(tmp_path)))
    long = Instruction("Why?", "Be brief.\n\nUser: Hi\n\nAssistant: Hello", "So.")
    assert data.train == [long, Instruction("Hi", "", "Hello")]
    assert data.notes == ("train: 2 rows without instruction or response left out",)


def test_prompts_follow_the_template_and_braces_in_texts_stay(tmp_path):
    row = Instruction("Sum {x}", "1, {context}", "2")
    bare = Instruction("Sum {x}", "", "2")
    assert (
        TEMPLATES["alpaca"]
        .prompt(row)
        .endswith("request.\n\n### Instruction:\nSum {x}\n\n### Input:\n1, {context}\n\n### Response:\n")
    )
    assert "Input" not in TEMPLATES["alpaca"].prompt(bare)
    data = load_instructions(config("dolly_mini", template="plain"))
    assert data.pairs([row, bare]) == [("Sum {x}\n\n1, {context}\n\n", "2"), ("Sum {x}\n\n", "2")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_differ_by_the_context_alone(name):
    template = TEMPLATES[name]
    prompts = [template.prompt(Instruction("INSTRUCTION", context, "RESPONSE")) for context in ("", "CONTEXT")]
    assert [("INSTRUCTION" in prompt, "CONTEXT" in prompt, "{" in prompt) for prompt in prompts] == [
        (True, False, False),
        (True, True, False),
    ]


KINDS = [row | {"category": f"kind {i % 3}"} for i, row in enumerate(ROWS)]


def test_so_many_rows_of_each_category_are_held_out_and_keep_it(tmp_path):
    twice = [*KINDS, *KINDS[:3], ROWS[0] | {"instruction": "without a kind"}]
    data, _ = load_rows(tmp_path / "a.jsonl", twice, held_out_per_category=4)
    held_out = data.evaluation["test"]
    assert Counter(row.category for row in held_out) == {"kind 0": 4, "kind 1": 4, "kind 2": 4}
    assert not {row.question for row in held_out} & {row.question for row in data.train}
    assert len(data.train) == len(twice) - 12
    assert any(note.startswith("test: 12 rows, 4 of each category") for note in data.notes)
    again, _ = load_rows(tmp_path / "b.jsonl", twice[::-1], held_out_per_category=4)
    assert set(again.evaluation["test"]) == set(held_out)


def test_rows_cannot_be_held_out_of_categories_that_there_are_not(tmp_path):
    with pytest.raises(UsageError, match="no row has a category"):
        load_rows(tmp_path / "a.jsonl", ROWS, held_out_per_category=4)


def test_bad_rows_are_left_out_or_refused_as_asked(tmp_path):
    odd = [{"instruction": 7, "output": SECRET}, {"instruction": "a", "output": [SECRET]}]
    empty = [{"instruction": "Say it.", "output": " "}]
    data, found = load_rows(tmp_path / "a.jsonl", [*ROWS, *odd, *empty], on_bad_row="skip")
    assert len(found) == len(ROWS)
    assert data.notes[:2] == (
        "1 rows without instruction or response left out",
        "2 rows of which a field holds no text left out",
    )
    assert SECRET not in str(data.notes)
    with pytest.raises(UsageError, match="line 31: no instruction, or no response") as error:
        load_rows(tmp_path / "b.jsonl", [*ROWS, *empty], on_bad_row="fail")
    assert "Say it." not in str(error.value)
    with pytest.raises(UsageError, match="no column 'response'"):
        load_rows(tmp_path / "c.jsonl", [{"instruction": "a"}] * 3, on_bad_row="skip")


def test_templates_of_the_alpaca_family_differ_where_they_are_known_to(tmp_path):
    row = Instruction("Sum.", "1, 2", "3")
    alpaca, legacy, french = (TEMPLATES[name].prompt(row) for name in ("alpaca", "alpaca_legacy", "vigogne"))
    assert alpaca == f"{legacy}\n"
    assert french.endswith("### Instruction:\nSum.\n\n### Entrée:\n1, 2\n\n### Réponse:\n")


def test_max_train_examples_keeps_the_first_and_says_so(tmp_path):
    whole, _ = load_rows(tmp_path / "a.jsonl", ROWS)
    part, _ = load_rows(tmp_path / "a.jsonl", ROWS, max_train_examples=5)
    assert part.train == whole.train[:5]
    assert part.evaluation == whole.evaluation
    assert "first 5 of" in part.notes[-1]


def test_saved_folders_are_read_whole_and_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(tmp_path / "two")
    one, two = (load_instructions(config(path=str(tmp_path / name))) for name in ("one", "two"))
    assert len(one.train) + len(one.evaluation["test"]) == len(two.train) == 30
    assert len(two.evaluation["test"]) == 3
    data.save_to_disk(tmp_path / "moved")
    moved = locate_instructions(config(path=str(tmp_path / "moved"))).fingerprint
    assert moved == one.fingerprint != two.fingerprint


def test_the_hubs_file_is_read_from_its_cache(tmp_path, monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "datasets--databricks--databricks-dolly-15k"
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("dolly")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    write(snapshot / "databricks-dolly-15k.jsonl", ROWS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = load_instructions(config("dolly"))
    assert data.fingerprint == f"hub:databricks/databricks-dolly-15k@{revision}"
    assert len(data.train) + len(data.evaluation["test"]) == 30


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": 7, "output": SECRET}, "line 2: no text in field 'instruction'"),
        ({"instruction": SECRET, "output": {}}, "line 2: no text in field 'response'"),
        ({"instruction": SECRET, "output": "a", "client": [SECRET]}, "line 2: field 'client' holds neither"),
    ],
)
def test_a_bad_row_is_named_without_its_text(row, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        load_rows(tmp_path / "a.jsonl", [ROWS[0], row])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("messages", [SECRET, [SECRET], [{"role": "tool", "content": SECRET}], [{"role": "user"}]])
def test_a_bad_conversation_is_named_without_its_text(messages, tmp_path):
    with pytest.raises(UsageError, match=r"line 1: 'messages' is no list of .* system, user, assistant") as error:
        load_rows(tmp_path / "a.jsonl", [{"messages": messages}])
    assert SECRET not in str(error.value)


def test_what_is_missing_is_said_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"data\.path=FILE"):
        locate_instructions(config())
    with pytest.raises(UsageError, match=r"no column 'response' or output, .* \(data\.aliases\); .* instruction, text"):
        load_rows(tmp_path / "a.jsonl", [{"instruction": "a", "text": "b"}])
    with pytest.raises(UsageError, match="no rows for the split train; 1 rows without"):
        load_rows(tmp_path / "b.jsonl", [{"instruction": "a", "response": ""}])
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UsageError, match=r"no file test\.tsv .* give one file as data\.path"):
        locate_instructions(config(path=str(tmp_path)))
    with pytest.raises(UsageError, match=r"data\.eval_splits: one file is split in two"):
        load_rows(tmp_path / "a.jsonl", ROWS, eval_splits=["dev", "test"])
    with pytest.raises(UsageError, match=r"data\.template: 'chatml' is not one of alpaca"):
        load_instructions(config("dolly_mini", template="chatml"))


def test_data_of_another_kind_are_refused():
    with pytest.raises(UsageError, match="'dolly_mini' is data of another kind; this task takes labelled texts"):
        load(config("dolly_mini"))
