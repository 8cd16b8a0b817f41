"""Data and weights are known by their content: what is not what a name promises has a name of its own."""

import csv
import json

import pytest
from omegaconf import OmegaConf
from support.composed import composed
from support.runs import write_messages

from privlm import content, registry
from privlm.content import Content, digest_of_rows
from privlm.data import text_classification
from privlm.data.locate import EMBEDDED_SMS
from privlm.data.schema import DataConfig
from privlm.models import locate
from privlm.schema import defaults

pytestmark = pytest.mark.torch_free


def contents(*words: str) -> dict[str, Content]:
    config = composed(*words)
    entry = registry.entry_of(config)
    return entry.contents(config, entry.inputs(config))


def data_of(*words: str) -> tuple[str, bool]:
    found = text_classification.content_of(composed("task=ewtune", "model=tiny", *words).data)
    return found.name, found.known


@pytest.fixture
def embedded_rows():
    return [line.split("\t", 1) for line in EMBEDDED_SMS.read_text(encoding="utf-8").splitlines()]


# --- digests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "others"),
    [
        ([["ab", "c"]], [["a", "bc"]]),
        ([["a", "b"]], [["b", "a"]]),
        ([["a"], ["b"]], [["b"], ["a"]]),
        ([["a", ""]], [["a"]]),
        ([["é"]], [["e\u0301"]]),
        ([["a\n1\n"]], [["a", "1"]]),
    ],
)
def test_other_rows_have_another_digest(columns, others):
    assert digest_of_rows("train", columns) != digest_of_rows("train", others)
    assert digest_of_rows("train", columns) == digest_of_rows("train", [list(column) for column in columns])
    assert digest_of_rows("train", columns) != digest_of_rows("dev", columns)


def test_half_a_character_has_a_digest():
    assert digest_of_rows("train", [["\ud800"]]) != digest_of_rows("train", [["\udc00"]])


# --- data -----------------------------------------------------------------------------------------------------------


def test_a_copy_of_the_rows_is_the_data_set_in_whatever_file(tmp_path, embedded_rows):
    copy = tmp_path / "elsewhere.txt"
    copy.write_bytes(EMBEDDED_SMS.read_bytes())
    table = tmp_path / "table.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["label", "text"], *embedded_rows])
    for path in (copy, table):
        assert data_of(f"data.path={path}") == ("sms_spam", True)
    assert data_of() == ("sms_spam", True)
    assert data_of("data.max_train_examples=100") == ("sms_spam", True)


def test_other_rows_texts_labels_or_another_order_are_own_data_named_after_the_file(tmp_path, embedded_rows):
    rows = embedded_rows
    flipped = [["ham" if rows[0][0] == "spam" else "spam", rows[0][1]], *rows[1:]]
    reworded = [[rows[0][0], f"{rows[0][1]}."], *rows[1:]]
    changes = {"fewer": rows[:-1], "turned": rows[::-1], "flipped": flipped, "reworded": reworded}
    for name, changed in changes.items():
        path = tmp_path / f"{name}.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["label", "text"], *changed])
        assert data_of(f"data.path={path}") == (name, False)


def test_splits_that_change_places_are_own_data(tmp_path):
    for folder, order in (("straight", ("train", "dev")), ("swapped", ("dev", "train"))):
        (tmp_path / folder).mkdir()
        for name, number in zip(order, (1, 2), strict=True):
            (tmp_path / folder / f"{name}.tsv").write_text(f"sentence\tlabel\ngood {number}\t1\nbad {number}\t0\n")
    config = defaults(DataConfig, "data", "sst2", path=str(tmp_path / "straight"))
    config.known = list(text_classification.content_of(config).splits.values())
    assert text_classification.content_of(config).name == "sst2"
    config.path = str(tmp_path / "swapped")
    assert text_classification.content_of(config) == Content(
        "swapped", text_classification.content_of(config).digest, False, text_classification.content_of(config).splits
    )


def test_own_data_are_neither_a_subset_nor_do_they_overlap(tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    config = composed("task=ewtune", "data=sst2", f"data.path={tmp_path}").data
    data = text_classification.load(config)
    assert text_classification.marks(data, config, ["sst"]) == ["own data"]
    assert not any("subset" in note for note in data.notes)
    assert any(note.startswith(f"own data: {tmp_path.name}") for note in data.notes)


def test_the_data_of_causal_are_known_too():
    assert contents("task=causal", "llm=tiny")["data"].known


def test_the_data_of_llm_programs_are_known_too_and_ones_own_are_not(tmp_path):
    pytest.importorskip("bm25s", reason="bm25s is not installed (extra llm)")
    assert contents("task=llm_programs", "llm=tiny")["data"].known
    questions = [{"qid": "1", "question": "Is it so?", "answer": True, "facts": ["It is."], "evidence": []}]
    (tmp_path / "train.json").write_text(json.dumps(questions))
    own = contents("task=llm_programs", "llm=tiny", f"data.path={tmp_path}", "data.subset=all")["data"]
    assert (own.name, own.known) == (tmp_path.name, False)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(f"content of {name}")
    return folder


def test_weights_of_a_folder_are_own_weights_unless_they_are_those_of_the_name(folder):
    config = OmegaConf.create(OmegaConf.to_container(composed("task=ewtune").model))
    config.path = str(folder)
    found = locate.content_of(config)
    assert (found.name, found.known) == ("tuned", False)
    config.known = [found.digest]
    assert locate.content_of(config) == Content("minilm", found.digest, known=True)


def test_random_weights_are_known_under_the_name_of_a_random_model_alone():
    assert contents("task=ewtune", "model=tiny")["model"].known
    config = OmegaConf.create(OmegaConf.to_container(composed("task=ewtune").model))
    config.random = {"model_type": "bert", "hidden_size": 32}
    config.package = config.hub_id = None
    found = locate.content_of(config)
    assert (found.name, found.known) == ("random", False)


def test_a_repository_is_known_by_its_revision_or_as_a_whole():
    config = OmegaConf.create({"known": ["hub:a/b@1", "hub:c/d"]})
    listed = ("hub:a/b@1", "hub:a/b@2", "hub:c/d@2", "hub:c/e@2")
    assert [content.is_listed(config, one) for one in listed] == [True, False, True, False]


def test_an_adapter_makes_own_weights_of_any_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    found = contents("task=causal", "llm=tiny", f"llm.adapter={tmp_path}")["llm"]
    assert (found.name, found.known) == (tmp_path.name, False)


# --- what becomes of it ---------------------------------------------------------------------------------------------


def test_a_task_that_does_not_say_has_own_data_where_it_names_a_path(tmp_path):
    config = {"data": {"name": "toy", "path": str(write_messages(tmp_path / "my.messages.txt"))}, "model": None}
    assert content.of_paths(config, {"data": "abc"}) == {"data": Content("my", "abc", known=False)}
    assert content.of_paths({"data": {"name": "toy", "path": None}}, {}) == {}
    assert content.of_paths({"llm": {"backend": "replay", "path": "answers.jsonl"}}, {}) == {}
