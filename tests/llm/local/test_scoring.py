"""The scorer against log_softmax by hand, one request at a time, over the whole sequence."""

from typing import Any

import pytest
import torch

from privlm.config import LocalLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm.local.batching import Limits
from privlm.llm.local.scoring import Encoder, score
from privlm.llm.types import ScoreRequest
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TOKENIZER = byte_tokenizer()
CONTEXT = "the cat sat on the mat, and then"
REQUESTS = [
    ScoreRequest(CONTEXT, " it slept"),
    ScoreRequest(CONTEXT, "!"),
    ScoreRequest(CONTEXT, " it went away, as cats do when nobody looks"),
    ScoreRequest("x", "y"),
    ScoreRequest("", "nothing before it"),
    ScoreRequest("", "x"),
    ScoreRequest("a long context " * 12, " ends"),
    ScoreRequest("short", " and a long continuation" * 5),
    ScoreRequest("two of", " one"),
    ScoreRequest("two of", "?"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_causal_lm(defaults(LocalLLMConfig, "llm", "tiny").random)


LIMITS = Limits(256, 256)


def scores(model, requests, limits=LIMITS, window=None):
    encoder = Encoder(TOKENIZER, window)
    found = dict(score(model, [encoder(request) for request in requests], limits))
    return [found[i] for i in range(len(requests))]


def by_hand(model, context, continuation):
    """Sum of -log p over the tokens after the context's."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        logp = model(ids).logits[0].log_softmax(-1)
    return -sum(float(logp[len(context) + i - 1, token]) for i, token in enumerate(continuation))


def test_equals_log_softmax_by_hand_over_the_continuation_alone(model):
    for request, found in zip(REQUESTS, scores(model, REQUESTS), strict=True):
        context = TOKENIZER(request.context)["input_ids"]
        continuation = TOKENIZER(request.continuation, add_special_tokens=False)["input_ids"]
        assert context.count(TOKENIZER.bos_token_id) == 1
        assert found.sum_nll == pytest.approx(by_hand(model, context, continuation), abs=1e-4)
        assert (found.num_tokens, found.context_tokens, found.truncated) == (len(continuation), len(context), False)
        assert found.avg_nll == found.sum_nll / len(continuation)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
    },
    "qwen2": {**SHAPE, "num_key_value_heads": 1},
    "mistral": {**SHAPE, "num_key_value_heads": 1, "sliding_window": 12},
    "gemma2": {**SHAPE, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 12, "final_logit_softcapping": 0.5},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_other_architectures_too(model_type):
    """Learned positions, projected embeddings, windows shorter than the text, logits that are capped."""
    other = random_causal_lm({"model_type": model_type, **ARCHITECTURES[model_type]})
    few_shot = [ScoreRequest(f"the same long beginning of all of them, {name}", " x y z") for name in "abcde"]
    requests = [*REQUESTS[:6], *few_shot]
    for request, found in zip(requests, scores(other, requests), strict=True):
        context = TOKENIZER(request.context)["input_ids"]
        continuation = TOKENIZER(request.continuation, add_special_tokens=False)["input_ids"]
        assert found.sum_nll == pytest.approx(by_hand(other, context, continuation), abs=1e-4)


@pytest.mark.parametrize("limits", [Limits(1, 1), Limits(60, 40), Limits(10_000, 10_000), Limits(10_000, 10_000, 3)])
def test_the_batch_does_not_matter(model, limits):
    for request, found in zip(REQUESTS, scores(model, REQUESTS, limits), strict=True):
        (alone,) = scores(model, [request])
        assert found.sum_nll == pytest.approx(alone.sum_nll, abs=1e-4)


def test_bos_in_the_text_is_not_doubled(model):
    plain, with_bos = scores(model, [ScoreRequest("a", "b"), ScoreRequest("<s>a", "b")])
    assert plain == with_bos


def test_offsets_count_from_the_first_token_after_the_context(model):
    joined = ScoreRequest("ab c", "d ef", border="offsets")  # "ab", " c", "d", ...: pairs of letters merge
    whole = TOKENIZER("ab cd ef", return_offsets_mapping=True)
    tokens = whole["input_ids"]
    border = next(i for i, (start, _) in enumerate(whole["offset_mapping"]) if start >= 4)
    (found,) = scores(model, [joined])
    assert found.num_tokens == len(tokens) - border
    assert found.sum_nll == pytest.approx(by_hand(model, tokens[:border], tokens[border:]), abs=1e-4)


def test_token_over_the_border_belongs_to_the_context():
    encoder = Encoder(TOKENIZER, None)
    separate, offsets = (encoder(ScoreRequest("c", "dx", border=border)) for border in ("separate", "offsets"))
    assert TOKENIZER.convert_ids_to_tokens(list(separate.continuation)) == ["dx"]
    assert TOKENIZER.convert_ids_to_tokens(list(offsets.context)) == ["<s>", "cd"]
    assert TOKENIZER.convert_ids_to_tokens(list(offsets.continuation)) == ["x"]


def test_long_context_loses_its_left_and_keeps_bos(model):
    request = ScoreRequest("1234567890", "xyz!")
    context = TOKENIZER(request.context)["input_ids"]
    continuation = TOKENIZER(request.continuation, add_special_tokens=False)["input_ids"]
    window = 8
    (found,) = scores(model, [request], window=window)
    kept = [context[0], *context[-(window - len(continuation)) :]]
    assert (found.truncated, found.context_tokens) == (True, len(kept))
    assert len(kept) + len(continuation) == window + 1  # the last token is predicted, not read
    assert found.sum_nll == pytest.approx(by_hand(model, kept, continuation), abs=1e-4)


def test_continuation_that_fills_the_window_is_scored_after_one_token(model):
    (found,) = scores(model, [ScoreRequest("abc", "1234")], window=4)
    assert (found.num_tokens, found.context_tokens, found.truncated) == (4, 1, True)


def test_continuation_longer_than_the_window_names_both_lengths(model):
    with pytest.raises(UsageError, match=r"5 tokens .*4 tokens"):
        scores(model, [ScoreRequest("abc", "12345")], window=4)


def test_empty_continuation_is_refused(model):
    with pytest.raises(UsageError, match="continuation without tokens"):
        scores(model, [ScoreRequest("abc", "")])
