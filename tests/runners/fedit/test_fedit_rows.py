"""Which rows task fedit learns from and is measured on, whose they are, how they are laid out, and the questions of
the judge.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from privlm.runners.fedit.answering import answered_rows
from privlm.runners.fedit.clients import deal, encoded
from privlm.runners.fedit.config import EMBEDDED
from privlm.runners.fedit.questions import read_questions
from privlm.runners.fedit.splits import Splits, load
from support.composed import composed
from transformers import PreTrainedTokenizerFast

from privlm.data.causal_lm import NOT_PREDICTED, CausalSplit, TokenRow, causal_split
from privlm.data.instructions import Instruction
from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer
from privlm.training.prompted import encode_prompted

DOLLY = Path(__file__).resolve().parents[4] / "shared" / "data" / "dolly"
VICUNA = DOLLY.parent / "instruct" / "vicuna_question.jsonl"

# client -> category -> rows, as counted in the released files
ALLOCATION = {
    "0": {"classification": 147, "closed_qa": 600, "summarization": 746},
    "1": {"open_qa": 746, "classification": 747},
    "2": {"open_qa": 434, "general_qa": 747, "information_extraction": 312},
    "3": {"open_qa": 1060, "summarization": 432},
    "4": {"closed_qa": 747, "information_extraction": 746},
    "5": {"open_qa": 746, "general_qa": 747},
    "6": {"general_qa": 308, "brainstorming": 747, "information_extraction": 438},
    "7": {"open_qa": 746, "classification": 485, "brainstorming": 262},
    "8": {"general_qa": 379, "closed_qa": 416, "creative_writing": 699},
    "9": {"classification": 747, "brainstorming": 747},
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(folder: Path, *words: str, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Splits:
    folder.mkdir(exist_ok=True)
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)
    config: Any = OmegaConf.create(OmegaConf.to_container(composed("task=fedit", "data=instructions", "data.path=x")))
    config.merge_with_dotlist([f"data.path={folder}", *words])
    return load(config)


def by_column() -> Any:
    """The configuration of a run whose rows name their clients."""
    words = ("federated=fedavg", "federated.partition=by_column", "federated.num_clients=null")
    return composed("task=fedit", *words)


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"instruction": f"Say {number}.", "response": f"{number}!", "category": "a", "client": number % 3} | changes


def test_the_released_rows_are_parted_as_they_were() -> None:
    if not DOLLY.is_dir():
        pytest.skip("needs the allocation of dolly to 10 clients in ../shared/data/dolly")
    data = load(composed("task=fedit", "data=dolly", f"data.path={DOLLY}"))
    shares = deal(data.train, by_column())
    assert set(shares) == set(ALLOCATION)
    found = {client: Counter(data.train[place].category for place in places) for client, places in shares.items()}
    assert found == ALLOCATION
    assert sorted(np.concatenate(list(shares.values())).tolist()) == list(range(14_931))
    assert set(Counter(row.category for row in data.test).values()) == {10}
    assert "15 training rows repeat another one, and stay" in data.notes
    assert not any("left out" in note for note in data.notes)


def test_no_question_is_on_both_sides_and_repeats_are_counted(tmp_path: Path) -> None:
    train = [row(1), row(1), row(2), row(3, instruction="SAY  4"), row(5, response=" ")]
    data = own(tmp_path, train=train, test=[row(4)])
    assert [one.instruction for one in data.train] == ["Say 1.", "Say 1.", "Say 2."]
    assert {
        "train: 1 rows without instruction or response left out",
        "1 training rows left out, whose question a test row asks",
        "1 training rows repeat another one, and stay",
    } <= set(data.notes)
    assert "Say" not in " ".join(data.notes)


def test_a_local_arm_has_the_rows_of_its_client_and_all_test_rows(tmp_path: Path) -> None:
    train, test = [row(n, category="ab"[n % 2]) for n in range(12)], [row(n, category="b") for n in range(20, 24)]
    local = own(tmp_path / "rows", "task.only_client='2'", train=train, test=test)
    assert [one.client for one in local.train] == ["2"] * 4
    assert len(local.test) == 4
    kind = own(tmp_path / "rows", "task.only_category=a", train=train, test=test)
    assert {one.category for one in kind.train} == {"a"}
    absent = own(tmp_path / "rows", train=[one for one in train if one["category"] == "a"], test=test)
    assert "categories of the test rows that no training row has: b" in absent.notes
    for word, message in {
        "task.only_client='7'": "task.only_client=7: no training row is of this client; there are 0, 1, 2",
        "task.only_category=c": "task.only_category=c: no training row is of this category; there are a, b",
    }.items():
        with pytest.raises(UsageError, match=message):
            own(tmp_path / "rows", word, train=train, test=test)
    bare = [{"instruction": f"Say {n}.", "response": "a"} for n in range(4)]
    with pytest.raises(UsageError, match="no row has a client"):
        own(tmp_path / "rows", "task.only_client='7'", train=bare, test=test)


def test_each_client_has_its_own_rows_and_none_of_what_the_encoder_has_left_out() -> None:
    rows = [Instruction(str(n), "", "a", client=("10", "9", "x")[n % 3]) for n in range(9)]
    shares = deal(rows, by_column())
    assert {client: places.tolist() for client, places in shares.items()} == {
        "x": [2, 5, 8], "9": [1, 4, 7], "10": [0, 3, 6],
    }  # fmt: skip
    train = causal_split([TokenRow([n + 1] * 4, 4 if n == 4 else 1) for n in range(9)], max_length=8, pad_token_id=0)
    found = encoded(shares, train)
    assert [int(ids[0]) - 1 for ids in found["9"].input_ids] == [1, 7]
    assert sum(map(len, found.values())) == len(train) == 8
    with pytest.raises(UsageError, match="rows without a client"):
        deal([*rows, Instruction("a", "", "b")], by_column())
    empty = causal_split([TokenRow([1, 1], 2 if n % 3 == 1 else 1) for n in range(9)], max_length=8, pad_token_id=0)
    with pytest.raises(UsageError, match="client 9: no row has a token to learn"):
        encoded(shares, empty)


def tokens(split: CausalSplit, place: int) -> tuple[list[int], list[int]]:
    """Of a row: what is read, what is predicted."""
    labels = split.labels[place]
    return split.input_ids[place][labels == NOT_PREDICTED].tolist(), labels[labels != NOT_PREDICTED].tolist()


def test_the_loss_is_of_exactly_the_response_whatever_the_tokenizer_merges() -> None:
    tokenizer = merging_tokenizer()
    pairs = [("ab", "cd"), ("ab", "bcd")]  # b and c are one token: of the first row it lies across the border
    split = encode_prompted(pairs, tokenizer, train_on_inputs=False, max_length=8, side="left")
    ids = tokenizer.get_vocab()
    assert tokens(split, 0) == ([ids["a"], ids["bc"]], [ids["d"], ids["<end>"]])
    assert tokens(split, 1) == ([ids["a"], ids["b"]], [ids["bc"], ids["d"], ids["<end>"]])
    whole = encode_prompted(pairs, tokenizer, train_on_inputs=True, max_length=8, side="left")
    assert tokens(whole, 0)[0] == []


def merging_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocabulary = {word: number for number, word in enumerate(["<end>", "a", "b", "c", "d", "bc"])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [("b", "c")])), eos_token="<end>")


def test_a_cut_response_has_no_end_and_a_prompt_that_fills_the_row_is_left_out() -> None:
    tokenizer = byte_tokenizer()
    pairs = [("p", "r"), ("p", "r" * 20), ("p" * 20, "r")]
    split = encode_prompted(pairs, tokenizer, train_on_inputs=False, max_length=10, side="left")
    assert (split.kept.tolist(), split.num_truncated, split.num_skipped) == ([0, 1], 2, 1)
    assert tokens(split, 0)[1][-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in split.input_ids[1]


def test_a_category_in_turn_is_answered_of_the_rows_that_are_read_whole() -> None:
    rows = [Instruction(str(n), "", "a", category=kind) for n, kind in enumerate("aaabbc")]
    split = causal_split([TokenRow([1, 1], 2 if n == 0 else 1) for n in range(6)], max_length=4, pad_token_id=0)
    assert [row.instruction for row in answered_rows(rows, split, None)] == ["1", "3", "5", "2", "4"]
    assert [row.instruction for row in answered_rows(rows, split, 3)] == ["1", "3", "5"]
    assert answered_rows(rows, split, 0) == []


# --- questions of the judge -----------------------------------------------------------------------------------------


def test_questions_are_our_own_or_those_of_fastchat(tmp_path: Path) -> None:
    assert len(read_questions(EMBEDDED).questions) == 10
    turns = [{"question_id": n, "category": "generic", "turns": [f" q {n}? ", "and then?"]} for n in range(3)]
    found = read_questions(write(tmp_path / "turns.jsonl", turns))
    assert [question.text for question in found.questions] == ["q 0?", "q 1?", "q 2?"]
    plain = read_questions(write(tmp_path / "plain.jsonl", [{"question": f"q {n}?"} for n in range(3)]))
    assert [one.item for one in plain.questions] == [one.item for one in found.questions]
    assert plain.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a?"}, {"question": " "}], "line 2: no text of a question"),
        ([{"turns": []}], "line 1: no text of a question"),
        ([{"question": "a?"}, {"question": "a? "}], "line 2: the question of .* line 1, once more"),
        ([{"frage": "a?"}], "no column 'instruction' or question"),
    ],
)
def test_questions_that_are_none_are_refused_by_row(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_questions(write(tmp_path / "questions.jsonl", rows))


def test_the_80_questions_of_vicuna_are_read() -> None:
    if not VICUNA.is_file():
        pytest.skip("needs FastChat's vicuna_question.jsonl in ../shared/data/instruct")
    assert len(read_questions(str(VICUNA)).questions) == 80
