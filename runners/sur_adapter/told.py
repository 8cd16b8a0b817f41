"""What a reader of the numbers must know of how they were made."""

from __future__ import annotations

from privlm.config import Config
from privlm.diffusion.images import Images
from privlm.diffusion.pipelines import OpenedPipeline

from .config import asks_llm, weights_of
from .data import Tokens


def notes(config: Config, opened: OpenedPipeline, images: Images) -> list[str]:
    """One sentence each."""
    sampling = config.task.sampling
    scheduler = sampling.scheduler or "its own scheduler"
    drawn = f"images are drawn in {sampling.steps} steps of {scheduler}, guidance {sampling.guidance_scale:g}"
    return [_method(config), drawn, *_cut(opened, images), *_unread(config)]


def _method(config: Config) -> str:
    task, adapter = config.task, config.adapter
    if task.method == "finetune":
        return f"finetune: the UNet learns the sentences, adapter={adapter.name}"
    w_align, w_llm = weights_of(task)
    said = f"{task.method}: denoising, {w_align:g} x {task.losses.align} of the keywords"
    said += f", {w_llm:g} x {task.losses.llm} of {_giver(config)}" if w_llm else ", no language model"
    said += f", {task.losses.w_keep:g} x {task.losses.align} of keywords from themselves" if task.losses.w_keep else ""
    if adapter.compat == "released":
        said += (
            "; compat=released: the denoising loss does not reach the adapter, and prompts of a micro-batch hear each "
            "other, so that trainer.micro_batch_size changes the result"
        )
    return said


def _giver(config: Config) -> str:
    features = config.task.features
    if features.backend != "hf":
        return f"{features.backend} vectors"
    return f"layer {features.layer} of {config.llm.name} ({features.pooling}, {features.norm})"


def _cut(opened: OpenedPipeline, images: Images) -> list[str]:
    rows = [*images.train, *images.validation, *images.test]
    by_style = {"sentences": [row.text for row in rows], "prompts by keywords": [row.prompt for row in rows]}
    found = {style: Tokens.of(opened, prompts).num_cut for style, prompts in by_style.items()}
    return [
        f"{number:,} of {len(rows):,} {style} cut to {opened.max_length} tokens"
        for style, number in found.items()
        if number
    ]


def _unread(config: Config) -> list[str]:
    """Settings without effect."""
    if config.llm is None or asks_llm(config.task):
        return []
    return [f"llm={config.llm.name} has no part in this run: nothing is asked"]
