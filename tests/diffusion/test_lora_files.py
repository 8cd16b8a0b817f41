"""Low-rank pairs of a UNet: what trains, what is saved, and that any pipeline of diffusers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import disturb, folder_of, opened

from privlm.config import AdapterConfig, defaults
from privlm.diffusion.lora import LORA_FILE, METADATA, adapt, is_adapted, load_lora, save_lora, teacher
from privlm.diffusion.sampling import Sampler
from privlm.errors import UsageError
from privlm.models.loaded import Loaded

PROMPTS, SEEDS = ["a red circle", "two blue squares"], [3, 4]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def lora(**changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", "lora", **({"rank": 2, "alpha": 6.0} | changes))


def images(pipe: Any) -> np.ndarray:
    return Sampler(steps=2, guidance_scale=3.0, batch_size=2).generate(pipe, PROMPTS, SEEDS).astype(int)


def trainable(part: torch.nn.Module) -> list[str]:
    return [name for name, parameter in part.named_parameters() if parameter.requires_grad]


def trained_file(folder: Path, family: str = "sd1", **changes: Any) -> tuple[Path, np.ndarray]:
    """A file of pairs, and what the pipeline draws with them."""
    ours = opened(family)
    disturb(adapt(ours.unet, lora(**changes), seed=0))
    return save_lora(folder, unet=ours.unet), images(ours.pipe())


def test_pairs_stand_beside_the_projections_of_attention_and_begin_at_nothing() -> None:
    ours = opened()
    before = images(ours.pipe())
    unet = adapt(ours.unet, lora(), seed=0)
    names = trainable(unet)
    assert unet is ours.unet
    assert names
    assert all(".lora_" in name and any(f".{target}." in name for target in ATTENTION) for name in names)
    np.testing.assert_array_equal(images(ours.pipe()), before)


def test_a_text_encoder_has_pairs_at_all_projections_of_attention() -> None:
    names = trainable(adapt(opened().text_encoder, lora(), seed=0))
    for target in ("q_proj", "k_proj", "v_proj", "out_proj"):
        assert any(f".{target}.lora_A" in name for name in names), target
    assert all(".lora_" in name for name in names)


def test_convolutions_and_the_time_embedding_can_be_targets() -> None:
    unet = adapt(opened().unet, lora(target_modules=["conv1", "time_embedding.linear_1", "conv_in"]), seed=0)
    names = trainable(unet)
    assert any(name.startswith("conv_in.lora_A") for name in names)
    assert any("time_embedding.linear_1.lora_B" in name for name in names)
    assert sum(".conv1." in name for name in names) > 2


def test_the_seed_decides_the_pairs_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    first, same, other = (adapt(opened().unet, lora(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), expected)
    name = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_full_trains_all_and_none_nothing() -> None:
    unet = opened().unet
    assert len(trainable(adapt(unet, defaults(AdapterConfig, "adapter", "full"), 0))) == len(list(unet.parameters()))
    assert not trainable(adapt(unet, defaults(AdapterConfig, "adapter", "none"), 0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lora(target_modules=["to_z"]), "named 'to_z'"),
        (lora(rank=40), "adapter.rank=40 exceeds"),
        (defaults(AdapterConfig, "adapter", "rgp"), "takes lora, full, none"),
    ],
)
def test_what_cannot_be_adapted_is_refused(config: AdapterConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adapt(opened().unet, config, 0)


def test_pairs_beside_weights_of_half_precision_are_float32() -> None:
    unet = adapt(opened().unet.to(torch.bfloat16), lora(), 0)
    assert {parameter.dtype for parameter in unet.parameters() if parameter.requires_grad} == {torch.float32}
    seen = unet(torch.randn(1, 4, 8, 8).bfloat16(), 3, torch.randn(1, 5, 16).bfloat16()).sample
    assert seen.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("targets", [None, ["to_q", "conv1", "time_embedding.linear_2"]])
def test_stock_diffusers_reads_the_file_and_draws_the_same_images(
    tmp_path: Path, family: str, targets: list[str] | None
) -> None:
    _, expected = trained_file(tmp_path, family, target_modules=targets)
    stock = diffusers.DiffusionPipeline.from_pretrained(folder_of(family))
    stock.set_progress_bar_config(disable=True)
    before = images(stock)
    stock.load_lora_weights(tmp_path)
    assert np.abs(images(stock) - expected).max() <= 1
    assert np.abs(images(stock) - before).max() > 1


def test_the_file_is_read_back_frozen_and_with_its_settings(tmp_path: Path) -> None:
    path, expected = trained_file(tmp_path)
    assert path.name == LORA_FILE
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()[METADATA])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (2, 6.0)
    ours, state = opened(), torch.random.get_rng_state()
    load_lora(ours.pipe(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.abs(images(ours.pipe()) - expected).max() <= 1
    assert not trainable(ours.unet)


def test_a_file_of_another_trainer_is_read(tmp_path: Path) -> None:
    """With names of kohya's scripts, and alpha beside each pair."""
    path, expected = trained_file(tmp_path)
    weights = {}
    for name, value in load_file(path).items():
        layer, _, side = name.removeprefix("unet.").partition(".lora_")
        stem = f"lora_unet_{layer.replace('.', '_')}"
        weights[f"{stem}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = value
        weights[f"{stem}.alpha"] = torch.tensor(6.0)
    save_file(weights, tmp_path / "kohya.safetensors")
    ours = opened()
    load_lora(ours.pipe(), tmp_path / "kohya.safetensors")
    assert np.abs(images(ours.pipe()) - expected).max() <= 1


def test_a_pair_without_a_layer_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path, _ = trained_file(tmp_path)
    weights = load_file(path)
    save_file({name.replace("mid_block", "no_block"): value for name, value in weights.items()}, path)
    ours = opened()
    with pytest.raises(UsageError, match=r"weights have no layer in it \(the first: unet\.no_block"):
        load_lora(ours.pipe(), path)
    assert not is_adapted(ours.unet)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_file_for_another_kind_of_model_is_refused(tmp_path: Path, prefix: str) -> None:
    path, _ = trained_file(tmp_path)
    save_file({name.replace("unet.", prefix): value for name, value in load_file(path).items()}, path)
    with pytest.raises(UsageError, match="have no layer in it"):
        load_lora(opened().pipe(), path)


def test_pairs_of_another_width_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path, _ = trained_file(tmp_path)
    weights = load_file(path)
    save_file({name: value.repeat_interleave(2, -1) for name, value in weights.items()}, path)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_lora(opened().pipe(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_lora(opened().pipe(), path)
    with pytest.raises(UsageError, match="there is no such file"):
        load_lora(opened().pipe(), tmp_path / "elsewhere")


def test_a_part_without_pairs_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        save_lora(tmp_path, unet=opened().unet)


def test_the_teacher_is_the_untrained_unet_and_the_student_comes_back_as_it_was() -> None:
    ours = opened()
    before = images(ours.pipe())
    unet = disturb(adapt(ours.unet, lora(), 0))
    after, names = images(ours.pipe()), trainable(unet)
    frozen = unet.get_parameter(names[0]).requires_grad_(False)
    with teacher(unet):
        np.testing.assert_array_equal(images(ours.pipe()), before)
        with teacher(unet):
            pass
        np.testing.assert_array_equal(images(ours.pipe()), before)
    np.testing.assert_array_equal(images(ours.pipe()), after)
    assert trainable(unet) == names[1:]
    assert not frozen.requires_grad


def test_a_student_trains_beside_its_teacher() -> None:
    """The teacher's forward is between the student's and the backward pass."""
    unet = disturb(adapt(opened().unet, lora(), 0))
    x, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    student = unet(x, 3, states).sample
    with torch.no_grad(), teacher(unet):
        fixed = unet(x, 3, states).sample
    (student - fixed).square().mean().backward()
    assert all(unet.get_parameter(name).grad is not None for name in trainable(unet))


def test_a_unet_without_pairs_is_no_teacher() -> None:
    with pytest.raises(ValueError, match="keep a frozen copy"), teacher(opened().unet):
        pass


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_trained_unet_is_saved_and_read_as_any_model(tmp_path: Path, name: str) -> None:
    config = lora() if name == "lora" else defaults(AdapterConfig, "adapter", "full")
    loaded = Loaded.of(lambda: adapt(opened().unet, config, 0), made_of=["unet", name])
    disturb(loaded.model)
    loaded.save(loaded.model, tmp_path)
    again = loaded.build()
    loaded.load(again, tmp_path)
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
