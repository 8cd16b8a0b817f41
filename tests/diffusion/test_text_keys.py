"""Weights of text encoders and of pairs beside them are the same under the names of before and of today."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import config_of, disturb, folder_of, opened, text_encoder

from privlm.config import AdapterConfig, defaults
from privlm.diffusion.conditioning import tokenize
from privlm.diffusion.lora import METADATA, adapt, load_lora, save_lora
from privlm.diffusion.pipelines import open_pipeline
from privlm.diffusion.text_keys import PREFIX, fitted, fitted_settings, has_prefix, portable

PROMPTS = ["a red circle", "two"]


def as_before(name: str) -> str:
    return name if name.startswith((PREFIX, "text_projection")) else PREFIX + name


def as_today(name: str) -> str:
    return name.removeprefix(PREFIX)


LAYOUTS = (as_before, as_today)
Layout = Callable[[str], str]


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_either_layout_fits_either_class(projected: bool, layout: Layout) -> None:
    encoder = text_encoder(projected=projected)
    weights = encoder.state_dict()
    renamed = {layout(name): value for name, value in weights.items()}
    assert list(fitted(renamed, encoder)) == list(weights)
    assert list(fitted(renamed, type(encoder))) == list(weights)
    assert list(portable(renamed)) == [as_before(name) for name in weights]


def test_position_ids_of_old_files_are_left_out() -> None:
    encoder = text_encoder()
    assert not fitted({"text_model.embeddings.position_ids": torch.arange(3)}, encoder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_encoders_saved_in_either_layout_say_the_same(tmp_path: Path, layout: Layout, part: str) -> None:
    folder = Path(shutil.copytree(folder_of("sdxl"), tmp_path / "pipeline"))
    path = folder / part / "model.safetensors"
    renamed = {layout(name): value for name, value in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    ids = tokenize(opened("sdxl"), PROMPTS)
    found = getattr(open_pipeline(config_of(folder)), part)(ids)
    expected = getattr(opened("sdxl"), part)(ids)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)


def with_pairs(family: str) -> Any:
    ours = opened(family)
    lora = defaults(AdapterConfig, "adapter", "lora", rank=2, alpha=6.0)
    parts = ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)
    for part in parts:
        disturb(adapt(getattr(ours, part), lora, seed=0))
    return ours


@pytest.mark.medium
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_settings", [True, False])
def test_pairs_saved_in_either_layout_say_the_same(
    tmp_path: Path, family: str, layout: Layout, with_settings: bool
) -> None:
    trained, fresh = with_pairs(family), opened(family)
    parts = {name: getattr(trained, name) for name in ("text_encoder", "text_encoder_2")}
    path = save_lora(tmp_path, **parts)
    rewrite(path, layout, with_settings)
    load_lora(fresh.pipe(), path)
    ids = tokenize(fresh, PROMPTS)
    for name in ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",):
        found, expected = getattr(fresh, name)(ids)[0], getattr(trained, name)(ids)[0]
        if with_settings:
            torch.testing.assert_close(found, expected)
        else:  # without them alpha is taken for the rank: pairs of another strength, and of these layers all the same
            assert (found - getattr(opened(family), name)(ids)[0]).abs().max() > 0.01


def rewrite(path: Path, layout: Layout, with_settings: bool) -> None:
    """As a trainer with other versions would have written it."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()[METADATA])
    weights = {}
    for name, value in load_file(path).items():
        part, _, rest = name.partition(".")
        weights[f"{part}.{layout(rest)}"] = value
    for name in [name for name in settings if name.endswith("target_modules")]:
        settings[name] = [layout(target) for target in settings[name]]
    metadata = {METADATA: json.dumps(settings)} if with_settings else None
    save_file(weights, path, metadata=metadata)


def test_files_are_written_with_the_names_of_before(tmp_path: Path) -> None:
    path = save_lora(tmp_path, text_encoder=with_pairs("sd1").text_encoder)
    assert all(name.startswith("text_encoder.text_model.encoder.") for name in load_file(path))


@pytest.mark.parametrize("projected", [False, True])
def test_settings_name_the_modules_of_the_encoder(projected: bool) -> None:
    encoder = text_encoder(projected=projected)
    layer = "encoder.layers.0.self_attn.q_proj"
    named = (PREFIX if has_prefix(encoder) else "") + layer
    for layout in LAYOUTS:
        settings = {"target_modules": [layout(layer), "q_proj"], "rank_pattern": {layout(layer): 2}, "r": 4}
        found = fitted_settings(settings, encoder)
        assert found == {"target_modules": sorted([named, "q_proj"]), "rank_pattern": {named: 2}, "r": 4}
