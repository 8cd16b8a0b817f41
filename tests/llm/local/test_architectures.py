"""Asked together as asked alone: scores, choices, texts, beams and hidden states of every architecture that may share.

Tiny random weights, large enough that each token sees the others. Rows differ in length, share a beginning longer than
any window, and continue one context by several options.
"""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.local import architectures, generation, hidden, scoring
from privlm.llm.local.architectures import TOGETHER, reads_together
from privlm.llm.local.backend import LocalBackend
from privlm.llm.types import GenerateRequest, Sampling, ScoreRequest
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

TOKENIZER = byte_tokenizer()
BASE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = BASE | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
WINDOW = {"sliding_window": 12}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": False}
LATENT = BASE | {
    "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"

LISTED: dict[str, dict[str, Any]] = {
    "apertus": GROUPED,
    "arcee": HEADS,
    "biogpt": BASE,
    "bitnet": GROUPED,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": GPT2 | {"rotary_dim": 4, "n_ctx": 128},
    "cohere": GROUPED,
    "cohere2": GROUPED | WINDOW | {"num_hidden_layers": 4},
    "ctrl": GPT2 | {"dff": 64},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": GROUPED,
    "ernie4_5": GROUPED,
    "exaone4": GROUPED | WINDOW | {"num_hidden_layers": 4, "sliding_window_pattern": 4},
    "falcon": FALCON,
    "falcon, alibi": FALCON | {"alibi": True},
    "falcon, grouped": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gemma": HEADS,
    "gemma2": HEADS | WINDOW,
    "gemma3_text": HEADS | WINDOW | {"num_hidden_layers": 3, "layer_types": [SLIDING, FULL, SLIDING]},
    "gemma4_text": HEADS | WINDOW | {"num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]},
    "glm": HEADS,
    "glm4": HEADS,
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": BASE,
    "gpt_neox_japanese": BASE,
    "gpt_oss": HEADS | WINDOW | EXPERTS,
    "gptj": GPT2 | {"rotary_dim": 4},
    "granite": GROUPED,
    "granitemoe": GROUPED | EXPERTS,
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "internlm3": HEADS,
    "jetmoe": BASE | EXPERTS | {"num_key_value_heads": 2, "kv_channels": 8},
    "llama": GROUPED,
    "llama, dynamic": GROUPED | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    "ministral": HEADS | WINDOW,
    "ministral3": HEADS | {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        }
    },
    "mistral": GROUPED | WINDOW,
    "mixtral": GROUPED | EXPERTS,
    "modernbert-decoder": BASE | {"num_hidden_layers": 3, "local_attention": 12, "global_attn_every_n_layers": 3},
    "nanochat": GROUPED,
    "nemotron": GROUPED,
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": GROUPED | WINDOW | {"num_hidden_layers": 4},
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": BASE | {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "persimmon": BASE,
    "phi": BASE,
    "phi3": GROUPED | WINDOW,
    "phimoe": GROUPED | EXPERTS,
    "qwen2": GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen2_moe": GROUPED | ROUTED | {"shared_expert_intermediate_size": 16},
    "qwen3": HEADS,
    "qwen3_moe": HEADS | ROUTED,
    "seed_oss": HEADS,
    "smollm3": GROUPED,
    "stablelm": GROUPED,
    "starcoder2": GROUPED | WINDOW,
    "vaultgemma": HEADS | WINDOW,
    "xglm": {
        "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 128,
    },
}  # fmt: skip
"""Model type, and a word of the variant -> shape. The windows are shorter than the shared beginning."""

STATES = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_groups": 1}
ALONE: dict[str, dict[str, Any]] = {
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 256},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
        "window_size": 8, "max_position_embeddings": 128,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "phi3, longrope": GROUPED | {
        "original_max_position_embeddings": 24,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
            "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        },
    },
    "llama4_text": HEADS | {
        "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 32, "num_hidden_layers": 4,
    },
    "gemma3": {
        "text_config": HEADS | WINDOW | {"num_hidden_layers": 3, "vocab_size": len(TOKENIZER)},
        "vision_config": BASE | {"image_size": 28, "patch_size": 14},
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64},
    "recurrent_gemma": BASE | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 32},
    "lfm2": GROUPED | {"layer_types": ["conv", FULL]},
    "qwen3_next": HEADS | ROUTED | {
        "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", FULL], "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "jamba": GROUPED | {
        "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "granitemoehybrid": GROUPED | STATES | {
        "num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["mamba", "attention"], "mamba_expand": 2,
        "shared_intermediate_size": 32,
    },
    "falcon_h1": HEADS | STATES | {"mamba_d_ssm": 64},
}  # fmt: skip
"""Architectures that give other scores when they share, or that cannot."""

QUICK = {"llama", "gpt2", "bloom", "gemma2", "falcon, alibi", "mpt", "gpt_neo", "mamba", "phi3, longrope"}

BEGINNING = "the shared beginning of them all; "
SCORED = [
    ScoreRequest(BEGINNING + context, option)
    for context in ("a", "why it is so", "no, never")
    for option in (" yes", " no it is not")
]
SCORED += [ScoreRequest(BEGINNING + "alone", " z"), ScoreRequest("x", " y"), ScoreRequest("", "a short one")]
PROMPTS = [BEGINNING + "a", BEGINNING + "why it is so", BEGINNING + "no", BEGINNING + "then what", "x"]
GENERATED = [GenerateRequest(prompt, Sampling(4 + i)) for i, prompt in enumerate(PROMPTS)]
GENERATED += [GenerateRequest(prompt, Sampling(3, num_beams=2)) for prompt in PROMPTS[1:3]]


def marked(shapes):
    return [pytest.param(name, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name in shapes]


def make(name, shape) -> Any:
    model = random_causal_lm({"model_type": name.partition(",")[0], **shape})
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25, generator=generator)
    return model


def backend_of(model) -> LocalBackend:
    return LocalBackend.of(SimpleNamespace(model=model, tokenizer=TOKENIZER, digest="d"))


def asked(model, generated=GENERATED) -> dict[str, Any]:
    """What the model says to everything at once."""
    backend = backend_of(model)
    replies = dict(backend.ask([*SCORED, *generated]))
    scores = [replies[i].sum_nll for i in range(len(SCORED))]
    return {
        "scores": scores,
        "choices": [scores[i] < scores[i + 1] for i in range(0, 6, 2)],
        "texts": [replies[len(SCORED) + i].text for i in range(len(generated))],
        "states": backend.hidden_states([request.context for request in SCORED[::2]], 1, "mean"),
    }


def asked_alone(model, monkeypatch) -> dict[str, Any]:
    """Each row by itself, from its beginning, without cache or padding."""
    with monkeypatch.context() as patch:
        for module in (scoring, generation, hidden):
            patch.setattr(module, "reads_together", lambda model: False)
        return asked(model)


def require_same(together, alone):
    assert together["scores"] == pytest.approx(alone["scores"], abs=1e-3)
    assert together["choices"] == alone["choices"]
    assert together["texts"] == alone["texts"]
    torch.testing.assert_close(together["states"], alone["states"], atol=1e-3, rtol=1e-3)


def test_every_architecture_that_may_share_is_tested():
    assert {name.partition(",")[0] for name in LISTED} == TOGETHER
    assert not {name for name in ALONE if "," not in name} & TOGETHER


@pytest.mark.parametrize("name", marked(LISTED))
def test_rows_that_share_are_as_alone(name, monkeypatch):
    model = make(name, LISTED[name])
    assert reads_together(model)
    require_same(asked(model), asked_alone(model, monkeypatch))


@pytest.mark.parametrize("name", marked(ALONE))
def test_other_architectures_are_asked_one_by_one_and_it_is_said(name, monkeypatch, caplog):
    monkeypatch.setattr(architectures, "_told", set())
    model = make(name, ALONE[name])
    untouched = copy.deepcopy(model)
    found = asked(model, GENERATED[:2])
    for request, score in zip(SCORED, found["scores"], strict=True):
        assert score == pytest.approx(by_hand(untouched, request), abs=1e-3)
    for request, text in zip(GENERATED, found["texts"], strict=False):
        assert text == greedy(untouched, request.prompt, request.sampling.max_tokens)
    for request, states in zip(SCORED[::2], found["states"], strict=True):
        expected = read(untouched, TOKENIZER(request.context)["input_ids"]).hidden_states[1][0].mean(0)
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)
    assert caplog.text.count("each text is read alone") == 1


def read(model, ids):
    """By a model that has read nothing before."""
    with torch.inference_mode():
        return copy.deepcopy(model)(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)


def by_hand(model, request):
    context = TOKENIZER(request.context)["input_ids"]
    continuation = TOKENIZER(request.continuation, add_special_tokens=False)["input_ids"]
    logp = read(model, (context + continuation)[:-1]).logits[0].float().log_softmax(-1)
    return -sum(float(logp[len(context) + i - 1, token]) for i, token in enumerate(continuation))


def greedy(model, prompt, num_tokens):
    ids = TOKENIZER(prompt)["input_ids"]
    tokens: list[int] = []
    for _ in range(num_tokens):
        tokens.append(int(read(model, ids + tokens).logits[0, -1].argmax()))
    return TOKENIZER.decode(tokens, skip_special_tokens=True)


def test_reading_alone_is_reading_by_hand(monkeypatch):
    model = make("llama", LISTED["llama"])
    alone = asked_alone(model, monkeypatch)
    assert alone["scores"] == pytest.approx([by_hand(model, request) for request in SCORED], abs=1e-4)
    assert alone["texts"][:2] == [greedy(model, PROMPTS[0], 4), greedy(model, PROMPTS[1], 5)]


def test_a_class_that_is_not_transformers_own_reads_alone():
    """Code that comes with weights may do anything under a known name."""
    model = make("llama", LISTED["llama"])
    model.__class__ = type("LlamaForCausalLM", (type(model),), {"__module__": "remote.modeling_llama"})
    assert not reads_together(model)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ("llama", "gpt2", "bloom", "opt", "gptj", "gpt_neox")
        for kind in ("PrefixTuningConfig", "PromptTuningConfig")
        if (name, kind) != ("opt", "PromptTuningConfig")  # whose embedding is narrower here, which peft does not know
    ],
)
def test_virtual_tokens_of_peft_are_a_beginning_that_rows_share(name, kind, monkeypatch):
    import peft

    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(make(name, LISTED[name]), config).eval()
    with torch.no_grad():  # as after training
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    assert reads_together(model)
    together = asked(model)
    require_same(together, asked_alone(model, monkeypatch))
    context, continuation = (
        TOKENIZER(text, add_special_tokens=special)["input_ids"]
        for text, special in ((SCORED[0].context, True), (SCORED[0].continuation, False))
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([context + continuation])).logits[0, -len(context + continuation) :]
    logp = logits.log_softmax(-1)
    by_peft = -sum(float(logp[len(context) + i - 1, token]) for i, token in enumerate(continuation))
    assert together["scores"][0] == pytest.approx(by_peft, abs=1e-4)


def test_virtual_tokens_before_a_window_are_read_alone():
    from peft import PromptTuningConfig, get_peft_model

    base = make("mistral", LISTED["mistral"])
    base.config.sliding_window = 8
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert not reads_together(model)


def test_what_is_no_number_is_an_error_and_never_the_best():
    model = make("gpt2", LISTED["gpt2"])
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    language_model = LanguageModel(backend_of(model))
    with pytest.raises(UsageError, match="NaN in place of probabilities"):
        language_model.choose(BEGINNING, [" yes", " no"])
    with pytest.raises(UsageError, match="NaN in place of probabilities"):
        language_model.generate([GENERATED[0]])
