"""What a UNet is told of a prompt: the states of one text encoder or of two, and of SDXL pooled states and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privlm.models.evaluation_mode import evaluation_mode

ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Conditioning:
    """Of B prompts. states: [B, L, d]. pooled: [B, p] of SDXL, else None."""

    states: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice) -> Conditioning:
        return Conditioning(self.states[rows], None if self.pooled is None else self.pooled[rows])

    def expanded(self, num: int) -> Conditioning:
        """One prompt's, `num` times."""
        assert len(self) == 1, "one prompt is repeated"
        pooled = None if self.pooled is None else self.pooled.expand(num, -1)
        return Conditioning(self.states.expand(num, -1, -1), pooled)


def encode(pipe: Any, prompts: Sequence[str]) -> Conditioning:
    """What the pipeline's text encoders say of prompts, in evaluation mode and without gradients; longer ones are
    truncated.
    """
    positive, _ = _encoded(pipe, list(prompts), None)
    return positive


def encode_negative(pipe: Any, prompt: str | None = None) -> Conditioning:
    """What guidance leads away from, of one row.

    prompt: None leaves the text out as the pipeline does: the empty prompt, or zeros where SDXL was trained so.
    """
    _, negative = _encoded(pipe, [""], prompt)
    return negative


def tokenize(opened: Any, captions: Sequence[str], *, second: bool = False) -> Tensor:
    """Token ids [B, L] of captions, padded and truncated to the pipeline's length.

    opened: an OpenedPipeline, or any object with `tokenizer` and `max_length`. second: by the tokenizer of SDXL's
    second encoder.
    """
    tokenizer = opened.tokenizer_2 if second else opened.tokenizer
    settings = {"padding": "max_length", "truncation": True, "max_length": opened.max_length}
    return tokenizer(list(captions), return_tensors="pt", **settings).input_ids


def time_ids(original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """[6] of one image of SDXL: height and width of the file, top and left of what was cut out of it, height and width
    of what the UNet sees (Podell et al., arXiv 2307.01952, section 2.2), in pixels.
    """
    return torch.tensor([*original, *corner, *target], dtype=torch.float32)


@torch.no_grad()
def _encoded(pipe: Any, prompts: list[str], negative: str | None) -> tuple[Conditioning, Conditioning]:
    with at_rest(pipe, ENCODERS):
        found = pipe.encode_prompt(
            prompt=prompts,
            device=pipe.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            negative_prompt=None if negative is None else [negative] * len(prompts),
        )
    states, negative_states, pooled, negative_pooled = (*found, None, None)[:4]
    return Conditioning(states, pooled), Conditioning(negative_states, negative_pooled)


@contextmanager
def at_rest(pipe: Any, parts: Sequence[str]) -> Iterator[None]:
    """With these parts of a pipeline in evaluation mode."""
    with ExitStack() as stack:
        for part in parts:
            if getattr(pipe, part, None) is not None:
                stack.enter_context(evaluation_mode(getattr(pipe, part)))
        yield
