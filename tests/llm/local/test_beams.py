"""Beam search against that of transformers, and independence of the batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from privlm.config import LocalLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm.local.batching import Limits
from privlm.llm.local.beams import Searched
from privlm.llm.local.continuation import Prompt, Reading
from privlm.llm.local.generation import generate
from privlm.llm.types import GenerateRequest, Sampling
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TOKENIZER = byte_tokenizer()
PROMPTS = ["once upon a time", "a", "", "the longest prompt of all of them, by far, is this one", "two words"]
LIMITS = Limits(4096, 4096)


@pytest.fixture(scope="module")
def model() -> Any:
    """Its words are not all equally likely, as those of random weights nearly are."""
    model = random_causal_lm(defaults(LocalLLMConfig, "llm", "tiny").random)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


def answers(model, requests, *, limits=LIMITS, stop_tokens=()):
    prompts = [Prompt(tuple(TOKENIZER(request.prompt)["input_ids"]), request) for request in requests]
    found = dict(generate(model, TOKENIZER, prompts, stop_tokens, limits))
    return [found[i] for i in range(len(requests))]


def of_transformers(model, prompt, sampling, stop_tokens=(), **options):
    """Ids that the beam search of transformers adds, its end token included, and the score that it gives them."""
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    output = model.generate(
        ids, max_new_tokens=sampling.max_tokens, num_beams=sampling.num_beams, do_sample=False, pad_token_id=0,
        eos_token_id=sorted(stop_tokens) or None, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    added = output.sequences[0, ids.shape[1] :].tolist()
    return added, float(output.sequences_scores[0])


def likely_tokens(model, num):
    """Tokens that the continuations of the prompts hold."""
    requests = [Sampling(9, num_beams=5)] * len(PROMPTS)
    added = [of_transformers(model, prompt, sampling)[0] for prompt, sampling in zip(PROMPTS, requests, strict=True)]
    return set(sorted({token for tokens in added for token in tokens[2:]})[:num])


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("num_stops", [0, 1, 6])
def test_beam_search_is_that_of_transformers(model, num_beams, num_stops):
    stop_tokens = likely_tokens(model, num_stops)
    requests = [
        GenerateRequest(prompt, Sampling(max_tokens, num_beams=num_beams), logprobs=True)
        for prompt, max_tokens in zip(PROMPTS, [12, 3, 8, 5, 12], strict=True)  # prompts leave the batch one by one
    ]
    for request, answer in zip(requests, answers(model, requests, stop_tokens=stop_tokens), strict=True):
        tokens, score = of_transformers(model, request.prompt, request.sampling, stop_tokens)
        ended = tokens[-1] in stop_tokens
        assert answer.text == TOKENIZER.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        assert answer.finish_reason == ("stop" if ended else "length")
        assert answer.completion_tokens == len(tokens)
        assert sum(answer.logprobs) / len(tokens) == pytest.approx(score, abs=1e-5)


def test_searches_and_draws_of_one_batch_do_not_disturb_each_other(model):
    requests = [
        GenerateRequest(prompt, sampling)
        for prompt in PROMPTS
        for sampling in (
            Sampling(6, num_beams=3),
            Sampling(4),
            Sampling(6, temperature=0.8, top_k=5),
            Sampling(7, num_beams=2),
        )
    ]
    together = answers(model, requests)
    assert together == answers(model, requests, limits=Limits(1, 1))
    assert together == answers(model, requests[::-1])[::-1]


def test_a_search_finds_what_greedy_decoding_misses(model):
    requests = [GenerateRequest(prompt, Sampling(8, num_beams=n), logprobs=True) for prompt in PROMPTS for n in (1, 5)]
    found = answers(model, requests)
    means = [sum(answer.logprobs) / answer.completion_tokens for answer in found]
    gains = [searched - greedy for greedy, searched in zip(means[::2], means[1::2], strict=True)]
    assert sum(gains) > 0.1


def test_a_stop_string_ends_a_beam_as_in_transformers(model):
    whole = answers(model, [GenerateRequest(prompt, Sampling(12, num_beams=3)) for prompt in PROMPTS])
    stops = [answer.text[3] for answer in whole]
    requests = [
        GenerateRequest(prompt, Sampling(12, num_beams=3, stop=(stop,)))
        for prompt, stop in zip(PROMPTS, stops, strict=True)
    ]
    found = answers(model, requests)
    for request, stop, answer in zip(requests, stops, found, strict=True):
        tokens, _ = of_transformers(model, request.prompt, request.sampling, stop_strings=[stop], tokenizer=TOKENIZER)
        assert answer.text == TOKENIZER.decode(tokens, skip_special_tokens=True).partition(stop)[0]
    assert {answer.finish_reason for answer in found} == {"stop", "length"}


def test_an_end_counts_only_among_the_best_of_its_step():
    """The end token is third of two beams, and all that follows the other two is less likely."""
    search = Searched(Reading(Prompt((1,), GenerateRequest("a", Sampling(2, num_beams=2))), {9}, TOKENIZER))
    first_1V = torch.full((1, 60), -torch.inf)
    first_1V[0, [20, 21, 9]] = torch.tensor([0.40, 0.35, 0.25]).log()
    assert search.go_on(first_1V) == [0, 0]
    assert search.last == [20, 21]
    assert search.go_on(torch.zeros(2, 60)) == []
    assert search.answer().completion_tokens == 2


def test_memory_is_counted_for_every_beam(model):
    widths = []
    forward = model.forward

    def counting(**inputs):
        widths.append(inputs["input_ids"].shape[0])
        return forward(**inputs)

    model.forward = counting
    try:
        requests = [GenerateRequest("a b c", Sampling(5, num_beams=4), number) for number in range(6)]
        answers(model, requests, limits=Limits(held=100, read=1000))
    finally:
        del model.forward
    assert max(widths) <= 100 // 9  # 9 tokens a beam at the end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams must be above 0, not 0"),
        ({"top_k": 0}, "top_k must be above 0, not 0; None draws from all tokens"),
        (
            {"num_beams": 4, "temperature": 0.1},
            "num_beams=4 searches and draws nothing: set temperature=0 instead of 0.1, or num_beams=1",
        ),
    ],
)
def test_sampling_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(Sampling(4), **changes)
