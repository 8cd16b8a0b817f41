"""What plan.py of several tasks share: what memory training takes, what asking costs."""

from types import SimpleNamespace

import pytest

from privlm import forecast
from privlm.config import AdapterConfig, ModelConfig, TrainerConfig, defaults
from privlm.llm.budget import Spent
from privlm.training.memory import causal_lm_activations

LLAMA = {"model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3,
         "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 256}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256}
STILL = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}
NUM_EXAMPLES = 4


def causal_lm(architecture, adapter):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture, **special))
    if adapter == "lora":
        family = architecture["model_type"]
        lora = LoraConfig(r=4, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # as after a first step: while they are zero nothing is known of their partners
                torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def peak_bytes(function):
    """The most that torch held at a time for `function`, beside what it held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.medium
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(
    ("architecture", "length"),
    [
        (LLAMA | {"vocab_size": 400}, 64),
        (LLAMA | {"vocab_size": 400}, 256),  # long enough that gradients of single records are formed
        (GPT2 | STILL | {"vocab_size": 3000}, 128),
        (GPT2 | {"vocab_size": 400}, 128),
    ],
    ids=["llama", "llama, long", "gpt2", "gpt2 with dropout"],
)
def test_the_activations_of_a_causal_lm_are_those_that_torch_holds(architecture, length, adapter, private):
    """Within a tenth; gradients of parameters are there before, as the formula counts them apart."""
    import torch
    from torch.nn import functional as F

    from privlm.privacy.engine import PrivacyEngine

    model = causal_lm(architecture, adapter)
    engine = PrivacyEngine(model, clipping_norm=1.0) if private else None
    ids = torch.randint(3, architecture["vocab_size"], (NUM_EXAMPLES, length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
             "position_ids": torch.arange(length).expand_as(ids)}  # fmt: skip

    def losses(model, batch):
        logits = model(**batch, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").mean(1)

    def step():
        if engine is None:
            losses(model, batch).sum().backward()
        else:
            engine.backward(losses, batch)

    step()
    expected = causal_lm_activations(
        architecture, adapter=adapter, num_examples=NUM_EXAMPLES, length=length, private=private
    )
    assert peak_bytes(step) == pytest.approx(expected, rel=0.1)


@pytest.mark.torch_free
def test_an_architecture_whose_shapes_are_not_known_has_no_size(tmp_path):
    for name, content in {
        "config.json": '{"model_type": "unheard_of"}',
        "model.safetensors": "",
        "tokenizer.json": "",
    }.items():
        (tmp_path / name).write_text(content)
    config = SimpleNamespace(
        model=defaults(ModelConfig, "model", "minilm", path=str(tmp_path), package=None),
        adapter=defaults(AdapterConfig, "adapter", "full"),
        trainer=defaults(TrainerConfig, "trainer", "single"),
    )
    assert set(forecast.size(config, num_labels=2).values()) == {None}


@pytest.mark.torch_free
def test_calls_are_told_by_part_and_dollars_where_the_price_is_known():
    by_part = {"straight": Spent(10, 2_000_000, 100), "swapped": Spent(5, 1_000_000, 900)}
    counted = {"calls_straight": 10, "calls_swapped": 5, "calls": 15, "prompt_tokens": 3_000_000,
               "completion_tokens_at_most": 1000}  # fmt: skip
    assert forecast.asking(by_part) == counted
    for prices in ((None, None), (1.0, None)):
        assert forecast.asking(by_part, SimpleNamespace(price=SimpleNamespace(**price(*prices)))) == counted
    priced = SimpleNamespace(price=SimpleNamespace(**price(0.5, 20.0)))
    assert forecast.asking(by_part, priced) == counted | {"usd_at_most": pytest.approx(1.52)}


def price(given, answered):
    return {"input": given, "output": answered}
