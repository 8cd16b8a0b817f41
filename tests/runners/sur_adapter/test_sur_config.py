"""What is asked of the configuration, and what the recipes make of it."""

from __future__ import annotations

import pytest
from privlm.runners.sur_adapter.config import asks_llm, weights_of
from support.composed import composed

from privlm.config import check
from privlm.errors import UsageError

PAPER = ("task=sur_adapter", "model=sd15", "data=surd", "data.path=somewhere", "scale=paper")


@pytest.mark.parametrize(
    "words",
    [
        ("scale=smoke",),
        ("scale=smoke", "adapter.compat=released"),
        ("scale=smoke", "task.method=finetune", "adapter=full"),
        ("scale=small",),
        ("scale=small", "task.method=align_only", "~llm"),
        ("scale=small", "task.method=llm_only", "llm=minilm"),
        ("scale=small", "task.method=finetune", "adapter=lora", "privacy=dp_sgd"),
        ("scale=small", "adapter.compat=released"),
        ("scale=small", "privacy=dp_sgd"),
        (*PAPER[1:], "adapter.compat=released"),
        (*PAPER[1:], "task.method=finetune", "adapter=lora", "privacy=dp_sgd"),
    ],
    ids=" ".join,
)
def test_every_method_is_a_configuration(words):
    assert check(composed("task=sur_adapter", *words)) == []


@pytest.mark.parametrize(
    ("key", "published"),
    [
        ("adapter.depth", 2), ("adapter.heads", 8), ("adapter.feedforward", 2048), ("adapter.dropout", 0.1),
        ("adapter.eta", 0.1), ("adapter.mix", "paper"),
        ("task.losses.w_align", 1e-5), ("task.losses.w_llm", 1e-5), ("task.losses.kl_reduction", "batch"),
        ("task.losses.align", "kl_feature"), ("task.losses.llm", "kl_feature"),
        ("task.features.layer", 40), ("task.features.norm", "raw"), ("task.features.pooling", "last"),
        ("task.denoising.gradient_checkpointing", True), ("task.denoising.snr_gamma", None),
        ("llm.name", "llama_13b"),
        ("data.resolution", 512), ("data.crop", "centre"), ("data.flip", True),
        ("trainer.batch_size", 4), ("trainer.micro_batch_size", 1), ("trainer.steps", 5000),
        ("trainer.learning_rate", 1e-5), ("trainer.schedule", "constant"), ("trainer.warmup_steps", 0),
        ("trainer.optimizer", "adamw"), ("trainer.weight_decay", 1e-2), ("trainer.max_grad_norm", 1.0),
        ("trainer.precision", "fp16"), ("trainer.checkpoint_every", 100),
    ],
)  # fmt: skip
def test_the_recipe_of_the_paper_is_the_published_command(key, published):
    value = composed(*PAPER)
    for part in key.split("."):
        value = value[part]
    assert value == published


def test_the_released_code_is_a_word():
    config = composed("task=sur_adapter", "adapter.compat=released")
    adapter = config.adapter
    assert (adapter.mix, adapter.proj, adapter.apply_to) == ("paper", "frozen", "both")
    assert not config.task.losses.mask_padding


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("adapter.eta=1.5",), "adapter.eta must be at least 0 and at most 1, not 1.5"),
        (("adapter.compat=relased",), "adapter.compat: 'relased' is not one of paper, released; did you mean"),
        (
            ("task.losses.align=ms",),
            "task.losses.align: 'ms' is not one of kl_feature, mse, cosine; did you mean 'mse'?",
        ),
        (("task.losses.w_llm=-1",), "task.losses.w_llm must be at least 0"),
        (("task.features.backend=hashed",), "did you mean 'hash'?"),
        (("task.features.pooling=mena",), "did you mean 'mean'?"),
        (("adapter=lora",), "adapter=lora: task.method=sur trains adapter=sur_adapter; choose it"),
        (
            ("task.method=finetune",),
            "adapter=sur_adapter: task.method=finetune trains the UNet: adapter=lora or adapter=full",
        ),
        (
            ("adapter.compat=released", "privacy=dp_sgd"),
            "adapter.compat=released: its attention runs across the prompts",
        ),
        (("task.denoising.caption_dropout=0.1",), "the adapter's is frozen: set it to 0"),
        (("task.denoising.ema_decay=0.9",), "task=sur_adapter keeps the last weights; set it to null"),
        (("task.features.path=x.pt",), "task.features.path is of task.features.backend=precomputed, not hf"),
        (("task.features.backend=precomputed",), "task.features.path: name the file of vectors"),
        (("~llm",), "llm: task.features.backend=hf needs somebody to ask"),
        (("task.judging.extractor=clip",), "task.judging.extractor_path: name the weights"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(words, message):
    with pytest.raises(UsageError) as refused:
        composed("task=sur_adapter", "scale=smoke", *words)
    problems = str(refused.value).splitlines()
    assert len(problems) == 2  # a heading, and this one
    assert message in problems[1]


def test_the_adapter_is_of_this_task_alone():
    with pytest.raises(UsageError, match="adapter=sur_adapter stands before the UNet of task=sur_adapter alone"):
        composed("task=llm_adapters", "adapter=sur_adapter")


def test_options_are_the_keys_of_their_tables():
    from typing import get_args

    from privlm.runners.sur_adapter import config, losses

    from privlm.llm.types import Norm, Pooling

    assert list(losses.DISTANCES) == list(config.DISTANCES)
    assert set(config.POOLINGS) == set(get_args(Pooling))
    assert set(config.NORMS) == set(get_args(Norm))


@pytest.mark.parametrize(
    ("method", "w_align", "w_llm", "w_keep"),
    [("sur", 0.1, 1e-3, 1.0), ("align_only", 0.1, 0.0, 1.0), ("llm_only", 0.0, 1e-3, 0.0), ("finetune", 0.0, 0.0, 0.0)],
)
def test_a_method_leaves_out_what_its_name_says(method, w_align, w_llm, w_keep):
    adapter = ("adapter=lora",) if method == "finetune" else ()
    task = composed("task=sur_adapter", f"task.method={method}", *adapter).task
    assert weights_of(task) == (w_align, w_llm, w_keep)
    assert asks_llm(task) == (w_llm > 0)


def test_inputs_refuse_two_text_encoders_and_files_that_are_absent(tmp_path):
    from diffusion.tiny_pipelines import pipeline_folder
    from privlm.runners.sur_adapter.config import inputs

    folder = pipeline_folder(tmp_path / "sdxl", "sdxl")
    config = composed(
        "task=sur_adapter", "scale=smoke", f"model.path={folder}", "task.features.backend=precomputed",
        f"task.features.path={tmp_path / 'absent.pt'}",
    )  # fmt: skip
    with pytest.raises(UsageError) as refused:
        inputs(config)
    assert "adapts one text encoder, and SDXL has two: model=sd15" in str(refused.value)
    assert "task.features.path: there is no" in str(refused.value)
