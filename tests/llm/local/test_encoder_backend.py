"""A sentence encoder as llm=: it gives hidden states, and is refused by name where a text would be continued."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.llm.schema import LocalLLMConfig
from privlm.models.wordpiece import word_piece_tokenizer
from privlm.schema import defaults

WIDTH, LAYERS, WINDOW = 32, 3, 16
TEXTS = ["a b c", "one two three four five six", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = word_piece_tokenizer()
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=WINDOW, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(shape, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def asked(folder: Path) -> LanguageModel:
    config = defaults(LocalLLMConfig, "llm", "minilm", path=str(folder), device="cpu")
    return LanguageModel(LocalBackend.from_files(config), label="llm=minilm")


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_every_text_is_read_as_if_alone_with_its_marks(folder, asked, layer):
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, found_Td in zip(TEXTS, asked.hidden_states(TEXTS, layer, "tokens"), strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found_Td, states[layer][0], atol=1e-5, rtol=1e-5)


def test_its_last_layer_is_the_same_raw_and_final(asked):
    raw, final = (asked.hidden_states(TEXTS, -1, "mean", norm) for norm in ("raw", "final"))
    assert torch.equal(raw, final)


def test_a_long_text_keeps_the_mark_at_its_end(asked):
    (states_Td,) = asked.hidden_states(["one two three " * 20], 0, "tokens")
    (short_Td,) = asked.hidden_states(["one " * (WINDOW - 2)], 0, "tokens")
    assert len(states_Td) == len(short_Td) == WINDOW
    torch.testing.assert_close(states_Td[-1], short_Td[-1])


def test_it_continues_no_text_and_is_refused_by_name(asked):
    with pytest.raises(UsageError, match=r"llm=minilm cannot generate text \(needed by task=pkg\); use one that "):
        asked.require("generate", by="task=pkg")
    with pytest.raises(UsageError, match="cannot score given text"):
        asked.require("score", by="a test")


def test_what_is_of_causal_models_is_refused(folder):
    config = defaults(LocalLLMConfig, "llm", "minilm", path=str(folder), adapter="somewhere")
    (problem,) = config.check(None)
    assert problem == "llm.adapter is of causal language models: set it to null with llm.family=encoder"
