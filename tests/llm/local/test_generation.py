"""Generation against transformers' own, and independence of the batch."""

from typing import Any

import pytest
import torch

from privlm.config import LocalLLMConfig, defaults
from privlm.llm.local.batching import Limits
from privlm.llm.local.continuation import Drawn, Prompt, Reading, most_likely, nucleus
from privlm.llm.local.generation import generate
from privlm.llm.types import GenerateRequest, Sampling
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TOKENIZER = byte_tokenizer()
PROMPTS = ["once upon a time", "a", "", "the longest prompt of all of them, by far, is this one", "two words"]


@pytest.fixture(scope="module")
def model() -> Any:
    return random_causal_lm(defaults(LocalLLMConfig, "llm", "tiny").random)


LIMITS = Limits(4096, 4096)


def answers(model, requests, limits=LIMITS, stop_tokens=()):
    prompts = [Prompt(tuple(TOKENIZER(request.prompt)["input_ids"]), request) for request in requests]
    found = dict(generate(model, TOKENIZER, prompts, stop_tokens, limits))
    return [found[i] for i in range(len(requests))]


def of_transformers(model, prompt, max_tokens):
    """Ids that greedy decoding of transformers adds."""
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    output = model.generate(ids, max_new_tokens=max_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return output[0, ids.shape[1] :].tolist()


WINDOWED = {
    "model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 64, "sliding_window": 8,
}  # fmt: skip


@pytest.mark.parametrize("shape", [None, WINDOWED], ids=["tiny", "sliding window"])
def test_greedy_decoding_is_that_of_transformers(model, shape):
    model = random_causal_lm(shape) if shape else model
    lengths = [12, 3, 8, 5, 12]  # rows leave the batch one by one
    requests = [GenerateRequest(prompt, Sampling(n)) for prompt, n in zip(PROMPTS, lengths, strict=True)]
    for request, answer in zip(requests, answers(model, requests), strict=True):
        expected = of_transformers(model, request.prompt, request.sampling.max_tokens)
        assert answer.text == TOKENIZER.decode(expected, skip_special_tokens=True)
        assert (answer.status, answer.finish_reason) == ("length", "length")
        assert (answer.prompt_tokens, answer.completion_tokens) == (
            len(TOKENIZER(request.prompt)["input_ids"]), len(expected)
        )  # fmt: skip


def test_draws_do_not_depend_on_the_batch(model):
    requests = [
        GenerateRequest(prompt, Sampling(6, temperature=0.8, top_p=0.9), sample_index)
        for prompt in PROMPTS
        for sample_index in range(2)
    ]
    together = answers(model, requests)
    assert together == answers(model, requests, Limits(1, 1))
    assert together == answers(model, requests[::-1])[::-1]
    texts = [answer.text for answer in together]
    assert len(set(texts)) == len(texts)


def test_seed_is_part_of_the_draw(model):
    drawn = [
        answers(model, [GenerateRequest("a", Sampling(6, temperature=1.0, seed=seed))])[0] for seed in (None, 0, 1, 1)
    ]
    assert len({answer.text for answer in drawn}) == 3
    assert drawn[2] == drawn[3]


def test_logprobs_are_those_of_the_model(model):
    (answer,) = answers(model, [GenerateRequest("once", Sampling(5, temperature=2.0), logprobs=True)])
    (again,) = answers(model, [GenerateRequest("once", Sampling(5), logprobs=True)])
    context = TOKENIZER("once")["input_ids"]
    tokens = of_transformers(model, "once", 5)
    with torch.inference_mode():
        logp = model(torch.tensor([context + tokens])).logits[0].log_softmax(-1)
    expected = [float(logp[len(context) + i - 1, token]) for i, token in enumerate(tokens)]
    assert again.logprobs == pytest.approx(expected, abs=1e-5)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 5
    assert answer.logprobs != again.logprobs


def test_stop_string_ends_the_text_and_is_not_part_of_it(model):
    (whole,) = answers(model, [GenerateRequest("once", Sampling(12))])
    stop = whole.text[3:5]
    (cut,) = answers(model, [GenerateRequest("once", Sampling(12, stop=("never", stop)))])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.status, cut.finish_reason) == ("ok", "stop")
    assert cut.completion_tokens < whole.completion_tokens


def test_stop_token_ends_the_text(model):
    tokens = of_transformers(model, "once", 6)
    end = next(token for token in tokens[1:] if token != tokens[0])
    (answer,) = answers(model, [GenerateRequest("once", Sampling(6))], stop_tokens={end})
    assert answer.text == TOKENIZER.decode(tokens[: tokens.index(end)])
    assert (answer.status, answer.finish_reason) == ("ok", "stop")
    (nothing,) = answers(model, [GenerateRequest("once", Sampling(6))], stop_tokens={tokens[0]})
    assert (nothing.text, nothing.status) == ("", "empty")


def test_nucleus_is_the_smallest_set_of_that_probability():
    logits_V = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    kept = {top_p: nucleus(logits_V, top_p).isfinite().tolist() for top_p in (0.01, 0.5, 0.6, 0.8, 1.0)}
    assert kept == {
        0.01: [False, True, False, False],
        0.5: [False, True, False, False],
        0.6: [False, True, False, True],
        0.8: [False, True, True, True],
        1.0: [True, True, True, True],
    }


def test_top_k_keeps_the_most_likely_and_the_nucleus_is_taken_of_these():
    logits_V = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    kept = {top_k: most_likely(logits_V, top_k).isfinite().tolist() for top_k in (1, 2, 4, 9, None)}
    assert kept == {1: [False, True, False, False], 2: [False, True, False, True]} | dict.fromkeys(
        (4, 9, None), [True] * 4
    )
    of_two = nucleus(most_likely(logits_V, 2), 0.6)  # 0.5 of 0.75 is two thirds, of all it were a half
    assert of_two.isfinite().tolist() == [False, True, False, False]


@pytest.mark.parametrize("top_k", [None, 2])
def test_draws_follow_the_tempered_distribution(top_k):
    logits_1V = torch.tensor([[0.0, 1.0, 2.0]])
    counts = torch.zeros(3)
    for sample_index in range(3000):
        request = GenerateRequest("a", Sampling(1, temperature=2.0, top_k=top_k), sample_index)
        drawn = Drawn(Reading(Prompt((1,), request), (), TOKENIZER))
        assert drawn.go_on(logits_1V) == []
        counts[drawn.last] += 1
    expected = most_likely(logits_1V[0] / 2, top_k).softmax(0)
    torch.testing.assert_close(counts / 3000, expected, atol=0.03, rtol=0)
