"""fit with every adapter of a causal language model: trained with and without privacy, saved, read back and proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import settings

from privlm.adapters.load import load_causal_lm
from privlm.config import AdapterConfig, defaults
from privlm.data.causal_lm import CausalSplit, TokenRow, causal_split
from privlm.errors import UsageError
from privlm.fit import fit
from privlm.job import Stage
from privlm.models.loaded import Loaded
from privlm.models.schema import CausalLMConfig
from privlm.privacy.schema import PrivacyConfig
from privlm.training.next_token import NextToken

SHAPE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    **{name: {"bottleneck_size": 4} for name in ("adapter_h", "adapter_p", "parallel", "scaled_parallel")},
    **{name: {"rank": 2} for name in ("lora", "lora_emnlp", "dora")},
    "ia3": {}, "prefix": {"num_virtual_tokens": 3}, "prompt": {"num_virtual_tokens": 3},
}  # fmt: skip
CONFIG = settings(
    steps=3, epochs=None, batch_size=4, micro_batch_size=2, checkpoint_every=2, optimizer="adamw", learning_rate=1e-2
)
PRIVACY = defaults(
    PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, delta=1e-3, rng="reproducible"
)


def rows(side: str = "right") -> CausalSplit:
    random = np.random.default_rng(0)
    texts = [TokenRow(random.integers(5, 200, int(length)).tolist()) for length in random.integers(4, 12, 12)]
    return causal_split(texts, max_length=32, pad_token_id=0, side=side)


def loaded(name: str, **changes: Any) -> Loaded:
    shape = SHAPE if "fused_qkv" not in changes else {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = defaults(
        CausalLMConfig, "model", "smollm2", path=None, package=None, gguf_file=None, max_length=32, random=shape
    )
    return load_causal_lm(model, defaults(AdapterConfig, "adapter", name, **{**SMALL.get(name, {}), **changes}), seed=0)


@pytest.mark.parametrize("privacy", [None, PRIVACY], ids=["plain", "private"])
@pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in SMALL), ("lora", {"fused_qkv": "qv"})])
def test_what_was_trained_is_read_back(name: str, changes: dict[str, Any], privacy: Any, tmp_path: Path) -> None:
    made = loaded(name, **changes)
    first = {key: value.clone() for key, value in made.model.state_dict().items()}
    with Stage.at(tmp_path, trainer=CONFIG, privacy=privacy) as stage:
        assert fit(stage, made, NextToken(), rows()).steps == 3
    moved = {key for key, value in made.model.state_dict().items() if not torch.equal(value, first[key])}
    trained = {key for key, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert moved <= trained
    assert len(moved) >= len(trained) / 2  # a pair's first half has no gradient at the first step
    if "scale" in name:
        assert {key for key in trained if "bottleneck_scale" in key} <= moved
    with Stage.at(tmp_path, trainer=CONFIG, privacy=privacy) as stage:
        again = made.fresh()
        fit(stage, again, NextToken(), rows())
    state = again.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in made.model.state_dict().items())


def test_a_model_of_which_nothing_trains_is_refused(tmp_path: Path) -> None:
    with (
        Stage.at(tmp_path, trainer=CONFIG) as stage,
        pytest.raises(UsageError, match=r"nothing .* trains \(adapter=none"),
    ):
        fit(stage, loaded("none"), NextToken(), rows())


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_padding_between_a_text_and_its_virtual_tokens_is_refused(name: str) -> None:
    with Stage.in_memory(trainer=CONFIG) as stage, pytest.raises(UsageError, match="pad on the right"):
        fit(stage, loaded(name), NextToken(), rows("left"))
