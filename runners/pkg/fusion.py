"""Images in every layer of a language model (section 3.4 of the paper): one-head cross-attention with a residual.

    H = H_text + W_o softmax(W_q H_text (W_k H_img)^T) W_v H_img

Shapes: B rows, T text tokens, P image tokens, H width of the text model, D width of the image features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.training.next_token import NextToken
from privlm.training.objective import Batch, ExampleRandom, PerExample

INITIAL_STD = 0.02


class Fusion(nn.Module):
    """Of one layer. W_o begins at zero, so that the untrained model is the text model, as LoRA's pairs do."""

    def __init__(self, text_width: int, image_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query = nn.utils.skip_init(nn.Linear, text_width, text_width, bias=False)
        self.key = nn.utils.skip_init(nn.Linear, image_width, text_width, bias=False)
        self.value = nn.utils.skip_init(nn.Linear, image_width, text_width, bias=False)
        self.out = nn.utils.skip_init(nn.Linear, text_width, text_width, bias=False)
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=INITIAL_STD, generator=generator)
        nn.init.zeros_(self.out.weight)

    def forward(self, text_BTH: Tensor, image_BPD: Tensor, has_image_B: Tensor) -> Tensor:
        """[B, T, H]; rows without an image are the text alone."""
        image_BPD = image_BPD.to(text_BTH.dtype)
        scores_BTP = self.query(text_BTH) @ self.key(image_BPD).mT
        seen_BTH = self.out(scores_BTP.softmax(dim=-1) @ self.value(image_BPD))
        return text_BTH + seen_BTH * has_image_B[:, None, None].to(text_BTH.dtype)


class Seen:
    """What the fusions of a model look at now: features [B, P, D] and has_image [B]; None: nothing is fused."""

    def __init__(self) -> None:
        self.features: Tensor | None = None
        self.has_image: Tensor | None = None


def add_fusions(model: Any, image_width: int, seed: int) -> None:
    """Puts a trainable Fusion behind every decoder layer of a causal language model, or of a peft model around one;
    `seeing` says what they look at.

    Raises UsageError for a model whose layers are not found.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    depth = base.config.get_text_config().num_hidden_layers
    stacks = [part for part in base.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(stacks) != 1:
        raise UsageError(f"task.vision: the decoder layers of {base.config.model_type} are not found")
    generator = torch.Generator().manual_seed(seed)
    seen = Seen()
    layers: Any = stacks[0]
    for layer in layers:
        fusion = Fusion(base.config.get_text_config().hidden_size, image_width, generator)
        layer.add_module("image_fusion", fusion)
        layer.image_seen = seen
        layer.register_forward_hook(_fuse)
    base.image_seen = seen


def _fuse(layer: Any, arguments: Any, output: Any) -> Any:
    """A hook behind a decoder layer. It holds nothing itself: a copy of the model has eyes of its own."""
    seen: Seen = layer.image_seen
    if seen.features is None:
        return output
    assert seen.has_image is not None
    if isinstance(output, tuple):
        return (layer.image_fusion(output[0], seen.features, seen.has_image), *output[1:])
    return layer.image_fusion(output, seen.features, seen.has_image)


@contextlib.contextmanager
def seeing(model: Any, features_BPD: Tensor, has_image_B: Tensor) -> Iterator[None]:
    """Within it the model of `add_fusions` reads its rows beside these images."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    seen: Seen = base.image_seen
    seen.features, seen.has_image = features_BPD, has_image_B
    try:
        yield
    finally:
        seen.features = seen.has_image = None


class SeeingNextToken(NextToken):
    """Predicts the next token of rows that come with images: the batch holds image_features and has_image, too."""

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        with seeing(model, batch["image_features"], batch["has_image"]):
            return super().losses(model, batch, rng)
