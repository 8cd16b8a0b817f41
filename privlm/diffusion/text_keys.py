"""Names of the weights of CLIP's text encoders, which transformers 5.6 has shortened: one mapping for both kinds.

    before: text_model.encoder.layers.0.self_attn.q_proj.weight    of CLIPTextModel and CLIPTextModelWithProjection
    since:             encoder.layers.0.self_attn.q_proj.weight    of CLIPTextModel; the other class is as before

Files of either kind, of encoders and of LoRA pairs beside them, are read into whatever the installed version has. They
are written with the names of before, which every version of diffusers reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

Value = TypeVar("Value")

PREFIX = "text_model."
APART = ("text_projection.",)
"""Beginnings of names that stand beside the text model, in both kinds."""

NOT_WEIGHTS = ("position_ids",)
"""Ends of names that old files hold and no version needs."""

PATTERNS = ("rank_pattern", "alpha_pattern")
NAMES = ("target_modules", "exclude_modules")
"""Settings of LoRA that name modules: as keys, and as elements."""


def fitted(weights: Mapping[str, Value], encoder: nn.Module | type) -> dict[str, Value]:
    """The same values under the names that `encoder` has.

    encoder: a text encoder, or its class.
    """
    named = _with_prefix if has_prefix(encoder) else _without_prefix
    return {named(name): value for name, value in weights.items() if not name.endswith(NOT_WEIGHTS)}


def portable(weights: Mapping[str, Value]) -> dict[str, Value]:
    """The same values under the names of before."""
    return {_with_prefix(name): value for name, value in weights.items()}


def fitted_settings(settings: Mapping[str, Any], encoder: nn.Module) -> dict[str, Any]:
    """Settings of LoRA with the names of modules as `encoder` has them; a target that is the end of a name stays."""
    changed = dict(settings)
    for field in PATTERNS:
        if settings.get(field):
            changed[field] = {_module(name, encoder): value for name, value in settings[field].items()}
    for field in NAMES:
        if isinstance(settings.get(field), list | tuple | set):
            changed[field] = sorted(_module(name, encoder) for name in settings[field])
    return changed


def has_prefix(encoder: nn.Module | type) -> bool:
    """Whether the names of an encoder are those of before."""
    if not isinstance(encoder, type):
        return hasattr(encoder, "text_model")
    import torch

    with torch.device("meta"):  # a small one, of no numbers
        return hasattr(encoder(encoder.config_class(num_hidden_layers=1)), "text_model")  # type: ignore[attr-defined]


def _module(name: str, encoder: nn.Module) -> str:
    if not has_prefix(encoder):
        return _without_prefix(name)
    return PREFIX + name if name.startswith("encoder.") else name  # or the end of a name


def _with_prefix(name: str) -> str:
    return name if name.startswith((PREFIX, *APART)) else PREFIX + name


def _without_prefix(name: str) -> str:
    return name.removeprefix(PREFIX)
