"""Rows of token ids: what is predicted, cut, left out and padded."""

import numpy as np
import pytest
import torch

from privlm.data.causal_lm import TokenRow, causal_split, padding_id, response_row
from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer

ROWS = [TokenRow([5, 6, 7, 8], prompt_length=2), TokenRow([9, 10])]


def split(rows=ROWS, **changes):
    return causal_split(rows, **({"max_length": 8, "pad_token_id": 0} | changes))


def test_padding_goes_to_the_side_that_is_asked_for():
    right, left = split().batch([0, 1]), split(side="left").batch(np.array([0, 1]))
    assert right["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert left["input_ids"].tolist() == [[5, 6, 7, 8], [0, 0, 9, 10]]
    assert right["labels"].tolist() == [[-100, -100, 7, 8], [9, 10, -100, -100]]
    assert left["labels"].tolist() == [[-100, -100, 7, 8], [-100, -100, 9, 10]]
    assert left["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert left["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    assert right["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 1, 1]]
    assert {tensor.dtype for tensor in (*right.values(), *left.values())} == {torch.int64}


def test_batch_holds_no_weights_unless_a_row_has_some():
    assert "token_weights" not in split().batch([0])
    weighted = split([TokenRow([5, 6, 7], weights=[0, 1, 2.5]), ROWS[1]], side="left").batch([0, 1])
    assert weighted["token_weights"].tolist() == [[0, 1, 2.5], [0, 1, 1]]
    assert weighted["token_weights"].dtype == torch.float32


def test_labels_given_go_before_the_prompt():
    assert split([TokenRow([5, 6, 7], prompt_length=1, labels=[-100, -100, 9])]).batch([0])["labels"].tolist() == [
        [-100, -100, 9]
    ]


def test_cut_and_skipped_rows_are_counted():
    data = split([TokenRow([5] * 9, prompt_length=7), TokenRow([5] * 9, prompt_length=8), *ROWS])
    assert (len(data), data.num_truncated, data.num_skipped) == (3, 2, 1)
    assert data.kept.tolist() == [0, 2, 3]
    assert data.lengths.tolist() == [8, 4, 2]


@pytest.mark.parametrize(
    "row",
    [
        TokenRow([]),
        TokenRow([5]),  # a first token has nothing before it
        TokenRow([5, 6], prompt_length=2),
        TokenRow([5, 6], labels=[5, -100]),
        TokenRow([5, 6], weights=[1, 0]),
    ],
)
def test_row_without_a_token_to_predict_is_skipped(row):
    data = split([row, ROWS[0]])
    assert (data.num_skipped, data.kept.tolist()) == (1, [1])


def test_nothing_left_to_train_on_says_why():
    with pytest.raises(UsageError, match=r"none of 2 rows .* first 2 tokens: raise model\.max_length"):
        split([TokenRow([5, 6, 7], prompt_length=2)] * 2, max_length=2)


@pytest.mark.parametrize(
    "row",
    [
        TokenRow([5, 6], labels=[5]),
        TokenRow([5, 6], weights=[1]),
        TokenRow([5, 6], weights=[1, -1]),
        TokenRow([5, 6], weights=[1, float("nan")]),
    ],
)
def test_labels_and_weights_that_fit_no_row_are_errors(row):
    with pytest.raises(ValueError, match=r"weights|labels"):
        split([row])


def test_response_is_learnt_up_to_the_end_of_text():
    tokenizer = byte_tokenizer()
    row = response_row(tokenizer, "Q: why?", " Because.")
    assert tokenizer.decode(row.ids[: row.prompt_length]) == "<s>Q: why?"
    assert tokenizer.decode(row.ids[row.prompt_length :]) == " Because.</s>"


def test_tokenizer_without_padding_pads_with_a_token_that_it_has():
    tokenizer = byte_tokenizer()
    assert padding_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert padding_id(tokenizer) == 0


def test_some_of_the_rows_are_a_split_of_their_own():
    rows = [TokenRow([5, 6, 7], 1), TokenRow([8] * 4, 4), TokenRow([9, 9], 1), TokenRow([4] * 6, 2)]
    split = causal_split(rows, max_length=5, pad_token_id=0)
    assert split.num_predicted.tolist() == [2, 1, 3]
    assert causal_split([TokenRow([5, 6, 7])], max_length=5, pad_token_id=0).num_predicted.tolist() == [2]
    some = split.select([2, 0])
    assert (len(some), some.kept.tolist(), some.num_predicted.tolist()) == (2, [3, 0], [3, 2])
    assert (some.num_truncated, some.num_skipped) == (0, 0)
    whole, part = split.batch([2, 0]), some.batch([0, 1])
    assert all(torch.equal(whole[name], part[name]) for name in whole)
