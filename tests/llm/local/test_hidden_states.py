"""Hidden states against a plain forward pass of each text alone, without padding."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.llm import ScriptedBackend

from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

WIDTH = 32
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 64},
}  # fmt: skip
TOKENIZER = byte_tokenizer()
TEXTS = ["a b c", "a much longer text than the first of them", "x"]
LAYERS = [0, 1, 2, 3, -1, -2, -4]


@pytest.fixture(scope="module", params=SHAPES)
def model(request) -> Any:
    """Its norms do something, unlike those of fresh weights."""
    model = random_causal_lm({"model_type": request.param, **SHAPES[request.param]})
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def asked(model) -> LanguageModel:
    return LanguageModel(LocalBackend.of(SimpleNamespace(model=model, tokenizer=TOKENIZER, digest="d")))


def by_hand(model, text, layer, norm):
    """[num_tokens, width]"""
    given = []
    base = model.base_model
    final_norm = base.norm if hasattr(base, "norm") else base.ln_f
    handle = final_norm.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    with torch.no_grad():
        states = model(torch.tensor([TOKENIZER(text)["input_ids"]]), output_hidden_states=True).hidden_states
    handle.remove()
    raw = given[0] if layer in (-1, len(states) - 1) else states[layer]
    return raw[0] if norm == "raw" else final_norm(raw)[0].detach()


@pytest.mark.parametrize("norm", ["raw", "final"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_pooling_is_that_of_the_text_alone(model, asked, layer, norm):
    last, mean, tokens = (asked.hidden_states(TEXTS, layer, pooling, norm) for pooling in ("last", "mean", "tokens"))
    assert last.shape == mean.shape == (len(TEXTS), WIDTH)
    assert last.dtype == mean.dtype == tokens[0].dtype == torch.float32
    for text, last_d, mean_d, tokens_Td in zip(TEXTS, last, mean, tokens, strict=True):
        expected_Td = by_hand(model, text, layer, norm)
        torch.testing.assert_close(tokens_Td, expected_Td, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last_d, expected_Td[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean_d, expected_Td.mean(0), atol=1e-5, rtol=1e-5)


def test_the_last_layer_is_raw_before_the_norm_that_transformers_lists_it_with(asked):
    raw, final = (asked.hidden_states(TEXTS, -1, "last", norm) for norm in ("raw", "final"))
    assert not torch.allclose(raw, final, atol=0.1)


def test_the_final_norm_of_the_last_but_one_layer_is_not_that_of_the_last(asked):
    raw, final = (asked.hidden_states(TEXTS, -2, "last", norm) for norm in ("raw", "final"))
    assert not torch.allclose(raw, final, atol=0.1)


def test_the_means_of_the_last_layer_come_without_being_asked_for(asked):
    torch.testing.assert_close(asked.hidden_states(TEXTS, -1), asked.hidden_states(TEXTS, 3, "mean", "raw"))


def test_a_long_text_is_cut_at_its_end(asked):
    words = "one two three " * 30
    cut = TOKENIZER.decode(TOKENIZER(words)["input_ids"][1:64])
    torch.testing.assert_close(asked.hidden_states([words], 1), asked.hidden_states([cut], 1))
    assert len(asked.hidden_states([words], 1, "tokens")[0]) == 64


def test_they_can_be_trained_on(asked):
    head = torch.nn.Linear(WIDTH, 1)
    head(asked.hidden_states(["a b c"], -1)).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((4,), r"layer 4: the model has layers 0 \(the embedding\) to 3"),
        ((-5,), r"layer -5: "),
        ((1, "first"), "pooling must be one of last, mean, tokens, not first"),
        ((1, "mean", "both"), "norm must be one of raw, final, not both"),
    ],
)
def test_what_is_not_there_is_refused(asked, options, message):
    with pytest.raises(UsageError, match=message):
        asked.hidden_states(["a"], *options)


def test_a_model_that_ends_without_a_norm_is_named():
    bare = random_causal_lm({"model_type": "gpt2", **SHAPES["gpt2"]})
    bare.transformer.ln_f = torch.nn.Identity()
    asked = LanguageModel(LocalBackend.of(SimpleNamespace(model=bare, tokenizer=TOKENIZER, digest="d")))
    with pytest.raises(UsageError, match=r"norm=final: .* GPT2LMHeadModel; use norm=raw"):
        asked.hidden_states(["a"], 1, norm="final")
    final, raw = (asked.hidden_states(["a"], -1, norm=norm) for norm in ("final", "raw"))
    assert torch.equal(final, raw)


def test_who_has_none_is_refused():
    with pytest.raises(UsageError, match="llm=scripted cannot give hidden states"):
        LanguageModel(ScriptedBackend()).hidden_states(["a"], 1)
