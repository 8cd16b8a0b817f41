"""A model trained in this run is asked as saved weights are: what it says, what it is called, how it is left."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from privlm.config import LocalLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.llm.record import CallRecord
from privlm.llm.types import Answer, GenerateRequest, Message, Sampling, ScoreRequest
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TINY: LocalLLMConfig = defaults(LocalLLMConfig, "llm", "tiny")
REQUESTS = [
    GenerateRequest("once upon", Sampling(5)),
    GenerateRequest((Message("user", "Where is it?"),), Sampling(5, temperature=0.9, seed=1), logprobs=True),
    GenerateRequest("once", Sampling(5, num_beams=3)),
    ScoreRequest("the cat", " sat"),
    ScoreRequest("the cat", " ran away"),
]


@dataclass
class Held:
    """As little as a backend needs of a model that was trained."""

    model: Any
    tokenizer: Any
    digest: str = "built from this"


@pytest.fixture
def loaded() -> Held:
    """A LoRA adapter with dropout around `tiny`, in train mode, after a few steps of training."""
    torch.manual_seed(0)
    base = random_causal_lm(TINY.random)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    model.train()
    held = Held(model, byte_tokenizer())
    for _ in range(3):
        step(held)
    return held


@pytest.fixture
def record(tmp_path) -> Iterator[CallRecord]:
    record = CallRecord(tmp_path / "calls.sqlite")
    yield record
    record.close()


def step(held: Held) -> None:
    """One step of training."""
    trainable = [parameter for parameter in held.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.5)
    ids = torch.tensor([held.tokenizer("the cat sat on the mat")["input_ids"]])
    held.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def replies(backend: LocalBackend) -> list[Any]:
    found = dict(backend.ask(REQUESTS))
    return [found[i] for i in range(len(REQUESTS))]


def modes(held: Held) -> list[bool]:
    return [module.training for module in held.model.modules()]


def test_it_answers_as_its_saved_weights_do(loaded, tmp_path):
    folder = tmp_path / "adapter"
    loaded.model.save_pretrained(str(folder))
    saved = LocalBackend.from_files(defaults(LocalLLMConfig, "llm", "tiny", adapter=str(folder)))
    here = LocalBackend.of(loaded)
    for ours, theirs in zip(replies(here), replies(saved), strict=True):
        if isinstance(ours, Answer):
            assert (ours.text, ours.prompt_tokens) == (theirs.text, theirs.prompt_tokens)
        else:
            assert ours.sum_nll == pytest.approx(theirs.sum_nll, abs=1e-5)
    expected = saved.hidden_states(["a b", "c"], 1)
    torch.testing.assert_close(here.hidden_states(["a b", "c"], 1), expected)


def test_it_chooses_through_the_language_model(loaded):
    model = LanguageModel(LocalBackend.of(loaded))
    options = [" sat on the mat", " xylophone"]
    choice = model.choose("the cat", options)
    assert choice.index == min(range(2), key=lambda number: choice.scores[number].avg_nll)


def test_an_answer_of_an_earlier_state_is_never_served(loaded, record):
    def ask() -> tuple[int, int]:
        model = LanguageModel(LocalBackend.of(loaded), record=record)
        model.generate(REQUESTS[:2])
        return model.usage.calls, model.usage.cached

    assert ask() == (2, 0)
    assert ask() == (0, 2)
    step(loaded)
    assert ask() == (2, 0)


def test_identity_is_what_the_weights_are_and_how_they_are_asked(loaded):
    first = LocalBackend.of(loaded).model
    assert LocalBackend.of(loaded).model == LocalBackend.of(loaded, batch_tokens=7).model == first
    changed = {
        LocalBackend.of(Held(loaded.model, loaded.tokenizer, "built from something else")).model,
        LocalBackend.of(loaded, name="guide").model,
        LocalBackend.of(loaded, dtype="bfloat16").model,
        LocalBackend.of(loaded, context_length=64).model,
    }
    for parameter in loaded.model.parameters():  # what a later stage freezes was trained all the same
        parameter.requires_grad_(False)
    assert LocalBackend.of(loaded).model == first
    with torch.no_grad():
        next(parameter for name, parameter in loaded.model.named_parameters() if "lora_B" in name)[0, 0] += 1e-6
    changed.add(LocalBackend.of(loaded).model)
    assert len(changed | {first}) == 6


def test_modes_are_as_they_were_also_between_two_replies(loaded):
    loaded.model.base_model.model.model.layers[0].eval()
    before = modes(loaded)
    assert len(set(before)) == 2
    backend = LocalBackend.of(loaded)
    for _ in backend.ask(REQUESTS):
        assert modes(loaded) == before
    backend.hidden_states(["a"], 1)
    assert modes(loaded) == before
    with pytest.raises(UsageError):
        list(backend.ask([ScoreRequest("a", "")]))
    assert modes(loaded) == before


def test_dropout_is_off_while_it_is_asked(loaded):
    backend = LocalBackend.of(loaded)
    assert replies(backend) == replies(backend)


def test_it_stays_its_owners(loaded):
    backend = LocalBackend.of(loaded)
    replies(backend)
    backend.close()
    assert replies(backend)
    step(loaded)  # it can still be trained


def test_autocast_is_near_and_leaves_the_weights(loaded):
    plain, half = replies(LocalBackend.of(loaded)), replies(LocalBackend.of(loaded, dtype="bfloat16"))
    assert half[3].sum_nll == pytest.approx(plain[3].sum_nll, rel=0.05)
    assert half[3].sum_nll != plain[3].sum_nll
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_context_length_is_the_models_own_or_less(loaded):
    (refused,) = (reply for _, reply in LocalBackend.of(loaded, context_length=4).ask(REQUESTS[:1]))
    assert "exceed the context length, 4 tokens" in refused.detail
    with pytest.raises(UsageError, match=r"^context_length=16385: 'trained' reads at most 16384 tokens$"):
        replies(LocalBackend.of(loaded, context_length=16385))


def test_bfloat16_weights_have_an_identity():
    held = Held(random_causal_lm(TINY.random).to(torch.bfloat16), byte_tokenizer())
    plain = Held(random_causal_lm(TINY.random), byte_tokenizer())
    assert LocalBackend.of(held).model != LocalBackend.of(plain).model
    assert replies(LocalBackend.of(held))
