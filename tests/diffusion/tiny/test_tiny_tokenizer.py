"""The tokenizer of the small pipeline: words it knows are one token, and every text can be spelt."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from privlm.diffusion import captions
from privlm.diffusion.scenes import every_scene
from privlm.diffusion.tiny.tokenizer import MAX_LENGTH, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_each_word_of_the_captions_a_base_learns_is_one_token(tokenizer):
    for scene in every_scene():
        words = captions.keyword(scene).replace(",", " ,").split()
        assert tokenizer.tokenize(captions.keyword(scene)) == [f"{word}</w>" for word in words]


def test_synonyms_are_spelt_and_fit(tokenizer):
    for scene in every_scene():
        for template in range(len(captions.UNSEEN)):
            text = captions.unseen(scene, template)
            assert len(tokenizer(text).input_ids) < MAX_LENGTH, text
            assert f"{captions.SYNONYMS[scene.color]}</w>" not in tokenizer.get_vocab()


@pytest.mark.parametrize("text", ["naïve", "漢字", "🙂", "a\u200bb", "مرحبا", "x" * 9])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text  # words and signs of one text are apart, as CLIP has them


def test_it_is_read_back_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = captions.narrative(every_scene()[7], 0)
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == MAX_LENGTH
