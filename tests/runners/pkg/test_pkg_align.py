"""What the guide learns: background tokens alone, nothing that is too long, and privately what a naive loop gives."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from privacy.naive import clipped_sums, naive
from privlm.runners.pkg.aligning import encode
from privlm.runners.pkg.prompts import guide_prompt
from privlm.runners.pkg.questions import Question
from support.composed import composed

from privlm.adapters.load import load_causal_lm
from privlm.data.causal_lm import NOT_PREDICTED
from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer
from privlm.privacy.engine import PrivacyEngine
from privlm.training.next_token import NextToken
from privlm.training.objective import ExampleRandom

ROW = Question("1", "Ice floats.", ("true",), (), "Ice is lighter than water.", "", (), "1", "", True, "file line 1")


def test_the_loss_falls_on_the_background_alone() -> None:
    tokenizer = byte_tokenizer()
    split = encode([ROW], "claim", tokenizer, 512)
    (ids,), (labels,) = split.input_ids, split.labels
    learnt = labels != NOT_PREDICTED
    assert tokenizer.decode(ids[learnt], skip_special_tokens=True) == ROW.background
    assert ids[learnt][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[~learnt], skip_special_tokens=True) == guide_prompt(ROW, "claim")


def test_a_prompt_that_fills_the_length_is_skipped_and_counted_and_no_background_is_learnt() -> None:
    tokenizer = byte_tokenizer()
    long = replace(ROW, question="A claim. " * 60)
    split = encode([ROW, long, replace(ROW, background="")], "claim", tokenizer, 160)
    assert (len(split), split.num_skipped, split.num_truncated) == (1, 1, 1)
    assert list(split.kept) == [0]
    with pytest.raises(UsageError, match=r"raise model.max_length"):
        encode([long], "claim", tokenizer, 160)


@pytest.mark.parametrize("words", [(), ("privacy.clipping_norm=0.05",)])
def test_private_sums_of_the_alignment_equal_the_naive_loop(words: tuple[str, ...]) -> None:
    config = composed("task=pkg", "scale=smoke", "privacy=dp_sgd", *words)
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    generator = torch.Generator().manual_seed(0)
    for parameter in (one for one in loaded.model.parameters() if one.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)  # LoRA begins where half is at rest
    rows = [replace(ROW, id=str(n), question=f"Claim {n}.", background=f"Evidence {'more ' * n}{n}.") for n in range(5)]
    batch = encode(rows, "claim", loaded.tokenizer, 512).batch(np.arange(5))

    def losses(model: Any, some: Any) -> torch.Tensor:
        return NextToken().losses(model, some, ExampleRandom(0, 0, np.arange(len(some["labels"])))).loss

    bound = config.privacy.clipping_norm
    norms, expected = naive(copy.deepcopy(loaded.model), losses, batch, bound)
    assert (norms > bound).all() == bool(words)
    engine = PrivacyEngine(loaded.model, clipping_norm=bound)
    (statistics,), sums = clipped_sums(engine, losses, batch)
    torch.testing.assert_close(statistics.norms.double(), norms, rtol=1e-5, atol=0)
    scale = max(float(total.abs().max()) for total in expected)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-5, atol=1e-5 * scale)
