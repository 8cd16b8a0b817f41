"""Which rows are read together, and rows that share a beginning."""

import random
from typing import Any

import pytest
import torch

from privlm.config import LocalLLMConfig, defaults
from privlm.llm.local.batching import Limits, Rows, batches, shared_beginnings
from privlm.models.causal import random_causal_lm

FEW_SHOT, QUESTION = list(range(300, 340)), list(range(400, 420))


@pytest.fixture(scope="module")
def model() -> Any:
    return random_causal_lm(defaults(LocalLLMConfig, "llm", "tiny").random)


def last_logits(model, row):
    with torch.inference_mode():
        return model(torch.tensor([row])).logits[0, -1]


def test_batches_keep_the_limits_and_sort_by_length():
    rng = random.Random(0)
    held = [rng.randint(1, 90) for _ in range(50)]
    outputs = [rng.randint(1, 9) for _ in range(50)]
    found = list(batches(Limits(held=200, read=150, outputs=20), held, held, outputs))
    assert sorted(index for batch in found for index in batch) == list(range(50))
    for batch in found:
        longest = max(held[index] for index in batch)
        assert len(batch) == 1 or (longest * len(batch) <= 150 and sum(outputs[index] for index in batch) <= 20)
    lengths = [held[index] for batch in found for index in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_row_longer_than_the_limits_is_alone():
    assert list(batches(Limits(10, 10), [5, 50, 5], [5, 50, 5])) == [[1], [0, 2]]


def test_groups_share_the_most_tokens():
    rows = [[*FEW_SHOT, *QUESTION, i] for i in range(5)] + [[*FEW_SHOT, i] for i in range(4)] + [[i] for i in range(3)]
    groups = {shared: sorted(indices) for indices, shared in shared_beginnings(rows)}
    assert groups == {60: [0, 1, 2, 3, 4], 40: [5, 6, 7, 8], 0: [9, 10, 11]}
    few = [[*FEW_SHOT, *QUESTION[:2], i] for i in range(2)] + rows[5:9]
    assert [shared for _, shared in shared_beginnings(few)] == [40]


def test_rows_that_share_little_are_one_group():
    rows = [[1, 2, 3, i] for i in range(6)]
    assert shared_beginnings(rows) == [([0, 1, 2, 3, 4, 5], 0)]
    assert shared_beginnings([]) == []


@pytest.mark.parametrize("beginning", [[], FEW_SHOT])
def test_rows_read_in_pieces_are_rows_read_at_once(model, beginning):
    sequences = [beginning + rest for rest in ([5], [6, 7, 8], [9, 10])]
    with torch.inference_mode():
        rows, logits_BV = Rows.of(model, sequences)
        for sequence, logits_V in zip(sequences, logits_BV, strict=True):
            torch.testing.assert_close(logits_V, last_logits(model, sequence))
        picked = rows.select([2, 0, 2])
        pieces = [[20], [21, 22], [23]]
        for row, piece, logits_V in zip([2, 0, 2], pieces, picked.read(model, pieces), strict=True):
            torch.testing.assert_close(logits_V, last_logits(model, sequences[row] + piece))
        ends = [[30], [31, 32], [33]]
        logits_NV = picked.finish(model, ends, torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 0]))
        torch.testing.assert_close(logits_NV[2], last_logits(model, sequences[0] + pieces[1] + ends[1]))
        torch.testing.assert_close(logits_NV[3], last_logits(model, sequences[2] + pieces[2] + ends[2]))
        assert rows.length_B.tolist() == [len(sequence) for sequence in sequences]


def test_a_beginning_is_read_once(model, monkeypatch):
    read = []
    monkeypatch.setattr(
        model, "forward", lambda forward=model.forward, **inputs: read.append(inputs) or forward(**inputs)
    )
    with torch.inference_mode():
        Rows.of(model, [[*FEW_SHOT, i] for i in range(8)])
    assert [tuple(inputs["input_ids"].shape) for inputs in read] == [(1, 40), (8, 1)]
