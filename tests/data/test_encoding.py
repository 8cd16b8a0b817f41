"""Tokenised splits: padding, pairs, truncation, and that no text stays."""

import pickle

import numpy as np
import torch

from privlm.data.encoding import tokenize
from privlm.data.text_classification import Split
from privlm.models.wordpiece import word_piece_tokenizer

TEXTS = ["hello you", "", "a rather longer message than the others, is it not?"]


def test_batch_is_padded_to_its_longest_example():
    tokenizer = word_piece_tokenizer()
    data = tokenize(Split((TEXTS,), np.array([0, 1, 0])), tokenizer, max_length=64)
    assert data.lengths.tolist() == [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    batch = data.batch(np.array([0, 1]))
    assert batch["input_ids"].shape == (2, data.lengths[0])
    assert batch["input_ids"].dtype == torch.int64
    assert batch["attention_mask"].sum(dim=1).tolist() == [data.lengths[0], 2]
    assert batch["input_ids"][1].tolist() == [2, 3] + [0] * (data.lengths[0] - 2)
    assert batch["labels"].tolist() == [0, 1]
    assert "token_type_ids" not in batch


def test_truncation_is_counted():
    data = tokenize(Split((TEXTS,), np.zeros(3, dtype=np.int64)), word_piece_tokenizer(), max_length=8)
    assert data.num_truncated == 1
    assert data.lengths.max() == 8


def test_pair_is_told_apart_by_token_types_and_its_longer_text_is_cut():
    split = Split((["yes"], [TEXTS[2]]), np.array([1]))
    data = tokenize(split, word_piece_tokenizer(), max_length=12)
    batch = data.batch([0])
    assert batch["token_type_ids"][0].tolist() == [0] * 4 + [1] * 8
    assert data.num_truncated == 1


def test_split_in_chunks_equals_the_whole(monkeypatch):
    split = Split((TEXTS,), np.array([0, 1, 0]))
    whole = tokenize(split, word_piece_tokenizer(), max_length=16)
    monkeypatch.setattr("privlm.data.encoding.CHUNK", 2)
    chunked = tokenize(split, word_piece_tokenizer(), max_length=16)
    assert [ids.tolist() for ids in whole.input_ids] == [ids.tolist() for ids in chunked.input_ids]
    assert whole.num_truncated == chunked.num_truncated


def test_no_text_is_kept():
    data = tokenize(Split((TEXTS,), np.array([0, 1, 0])), word_piece_tokenizer(), max_length=64)
    assert b"hello" not in pickle.dumps(data)


def test_letters_of_the_vocabulary_cover_plain_english():
    tokenizer = word_piece_tokenizer()
    ids = tokenizer("Win £1000 now! Reply STOP, 50% off @ www.example.com")["input_ids"]
    assert tokenizer.unk_token_id not in ids
