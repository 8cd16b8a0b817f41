"""Latents and states are computed once: kept by all that they depend on, gone on with, never reused when stale."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.image_folders import load_folder, pixels, rows, write_rows
from torch import Tensor, nn

from privlm.config import defaults
from privlm.diffusion import latents as module
from privlm.diffusion.image_schema import ImagesConfig
from privlm.diffusion.images import ImageRow, load_images
from privlm.diffusion.latents import Autoencoder, LatentData, Shared, encode_images, encode_texts, one_view, views
from privlm.errors import UsageError
from privlm.training.objective import ExampleRandom


class Halves(nn.Module):
    """Means of 2 x 2 pixels in place of an autoencoder; counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.num_seen = 0

    def encode(self, image: Tensor) -> Any:
        assert not self.training
        self.num_seen += len(image)
        latent = nn.functional.avg_pool2d(image, 2) * self.gain
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latent))


def halves(digest: str = "d", **changes: Any) -> Autoencoder:
    return Autoencoder(
        **{"vae": Halves(), "scaling_factor": 2.0, "shift": 0.5, "factor": 2, "digest": digest} | changes
    )


def seen(autoencoder: Autoencoder) -> int:
    return autoencoder.vae.num_seen  # type: ignore[return-value]


@pytest.fixture
def shown() -> list[ImageRow]:
    return load_images(data()).train


def data(**changes: Any) -> ImagesConfig:
    return defaults(ImagesConfig, "data", "shapes", **{"num_train": 10, "num_validation": 0, "num_test": 1} | changes)


def same_as(expected: np.ndarray) -> Callable[[Tensor], None]:
    return lambda found: torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_latents_are_the_scaled_and_shifted_mode_of_each_image(shown: list[ImageRow]) -> None:
    found = encode_images(shown, data(), halves(), batch_size=3)
    assert found.values.shape == (10, 1, 3, 16, 16)
    assert found.time_ids[0, 0].tolist() == [32, 32, 0, 0, 32, 32]
    image = shown[4].picture().astype(np.float32) / 127.5 - 1
    same_as((image.reshape(16, 2, 16, 2, 3).mean((1, 3)).transpose(2, 0, 1) - 0.5) * 2)(found.values[4, 0])


def test_an_autoencoder_of_diffusers_is_read_by_its_mode_and_stays_as_it_was(shown: list[ImageRow]) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, layers_per_block=1,
    ).train()  # fmt: skip
    autoencoder = Autoencoder(vae, 0.2, 0.0, 2, "d")
    found = encode_images(shown[:3], data(), autoencoder, batch_size=2).values
    image = torch.tensor(shown[2].picture()).permute(2, 0, 1)[None] / 127.5 - 1
    expected = vae.eval().encode(image).latent_dist.mean.detach() * 0.2
    torch.testing.assert_close(found[2], expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_and_not_computed_again(shown: list[ImageRow], tmp_path: Path) -> None:
    first, second = halves(), halves()
    made = encode_images(shown, data(), first, folder=tmp_path / "new")
    read = encode_images(shown, data(), second, folder=tmp_path / "new")
    assert (seen(first), seen(second)) == (10, 0)
    assert torch.equal(made.values, read.values)
    assert torch.equal(made.time_ids, read.time_ids)


OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"digest": "of another model"}, {}),
    ({"scaling_factor": 1.0}, {}),
    ({"shift": 0.0}, {}),
    ({}, {"resolution": 16}),
    ({}, {"flip": True}),
    ({}, {"crop": "random", "num_views": 2}),
]


@pytest.mark.parametrize(("of_model", "of_data"), OTHERS)
def test_a_cache_of_another_model_or_setting_is_never_used(
    shown: list[ImageRow], tmp_path: Path, of_model: dict[str, Any], of_data: dict[str, Any]
) -> None:
    encode_images(shown, data(), halves(), folder=tmp_path, augment=True)
    other = halves(**of_model)
    found = encode_images(shown, data(**of_data), other, folder=tmp_path, augment=True)
    assert seen(other) == 10 * found.values.shape[1]
    assert torch.equal(found.values, encode_images(shown, data(**of_data), halves(**of_model), augment=True).values)


def test_a_cache_of_other_images_or_of_another_seeds_crops_is_never_used(tmp_path: Path, shown: list[ImageRow]) -> None:
    encode_images(shown, data(), halves(), folder=tmp_path)
    other = halves()
    encode_images([*shown[:9], load_images(data()).test[0]], data(), other, folder=tmp_path)
    assert seen(other) == 10
    random = {"crop": "random", "num_views": 2}
    encode_images(shown, data(**random), halves(), folder=tmp_path, augment=True)
    encode_images(shown, data(seed=1, **random), other, folder=tmp_path, augment=True)
    assert seen(other) == 30


def test_what_a_kill_leaves_is_gone_on_with(
    shown: list[ImageRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 4)
    done: list[int] = []

    def killed(number: int) -> None:
        done.append(number)
        if number == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(shown, data(), halves(), folder=tmp_path, progress=killed)
    rest = halves()
    found = encode_images(shown, data(), rest, folder=tmp_path, progress=done.append)
    assert seen(rest) == 2
    assert done == [4, 8, 4, 8, 10]
    assert torch.equal(found.values, encode_images(shown, data(), halves()).values)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def change_a_number(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_a_word(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (cut_short, "cannot be read"),
        (change_a_number, "is not what was written"),
        (empty, "cannot be read"),
        (without_a_word, "is of other data or of another model"),
    ],
)
def test_a_damaged_shard_is_computed_anew_and_told(
    shown: list[ImageRow],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    problem: str,
) -> None:
    made = encode_images(shown, data(), halves(), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    again = halves()
    with caplog.at_level(logging.WARNING, logger="privlm"):
        found = encode_images(shown, data(), again, folder=tmp_path)
    assert seen(again) == 10
    assert torch.equal(found.values, made.values)
    assert problem in caplog.text
    assert "computed anew" in caplog.text
    caplog.clear()
    encode_images(shown, data(), again, folder=tmp_path)
    assert (seen(again), caplog.text) == (10, "")


def test_what_a_resolution_and_a_broken_autoencoder_cannot_give_is_refused(
    shown: list[ImageRow], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"data.resolution=31 is no multiple of 2, .* choose one, e.g. 32"):
        encode_images(shown, data(resolution=31), halves(), folder=tmp_path / "new")
    broken = halves()
    with torch.no_grad():
        broken.vae.gain.fill_(float("inf"))  # type: ignore[operator, union-attr]
    with pytest.raises(UsageError, match=r"not finite for shapes train 0 \(cpu torch.float32\)"):
        encode_images(shown, data(), broken, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="no images to encode"):
        encode_images([], data(), halves())


# --- views ----------------------------------------------------------------------------------------------------------


def test_views_are_drawn_by_content_and_seed(shown: list[ImageRow]) -> None:
    random = data(crop="random", num_views=5, flip=True)
    first = views(shown[0], random, augment=True)
    assert first == views(shown[0], random, augment=True)
    assert len({view.place for view in first}) == 5
    assert first != views(shown[1], random, augment=True)
    assert first != views(shown[0], data(crop="random", num_views=5, flip=True, seed=1), augment=True)
    assert len(views(shown[0], random, augment=False)) == 1
    flips = [view.flip for row in shown for view in views(row, random, augment=True)]
    assert 10 < sum(flips) < 40
    assert not any(view.flip for view in views(shown[0], data(crop="random", num_views=5), augment=True))


def test_views_of_an_image_are_its_crops_and_mirror_images(tmp_path: Path) -> None:
    images = load_folder(write_rows(tmp_path, rows(2)))  # of 24 x 16 pixels
    flipped = encode_images(images.train, data(resolution=16, flip=True), halves(), augment=True)
    assert flipped.values.shape == (2, 2, 3, 8, 8)
    assert torch.equal(flipped.values[:, 1], flipped.values[:, 0].flip(-1))
    random = encode_images(images.train, data(resolution=16, crop="random", num_views=3), halves(), augment=True)
    lefts = random.time_ids[0, :, 3].tolist()
    assert len(set(lefts)) > 1
    for view, left in enumerate(map(int, lefts)):
        image = pixels(0)[:, left : left + 16].astype(np.float32) / 127.5 - 1
        same_as((image.reshape(8, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1) - 0.5) * 2)(random.values[0, view])


def test_a_step_takes_one_view_of_each_image_by_its_own_stream(shown: list[ImageRow]) -> None:
    found = LatentData(
        encode_images(shown, data(flip=True), halves(), augment=True),
        text_states=torch.arange(10.0)[:, None, None],
        pooled=torch.zeros(10, 2),
    )
    rows = np.arange(10)
    batch = found.batch(rows)
    assert batch["views"].shape == (10, 2, 3, 16, 16)
    assert batch["time_ids"].shape == (10, 2, 6)
    taken = [one_view(batch, ExampleRandom(0, step, rows)) for step in range(20)]
    assert set(taken[0]) == {"latents", "text_states", "pooled", "time_ids"}
    assert taken[0]["time_ids"].shape == (10, 6)
    mirrored = torch.stack([(one["latents"] == batch["views"][:, 1]).flatten(1).all(1) for one in taken])
    straight = torch.stack([(one["latents"] == batch["views"][:, 0]).flatten(1).all(1) for one in taken])
    assert (mirrored | straight).all()
    assert 60 < int(mirrored.sum()) < 140
    some = one_view(found.batch(rows[3:5]), ExampleRandom(0, 7, rows[3:5]))
    assert torch.equal(some["latents"], taken[7]["latents"][3:5])


def test_images_with_one_view_need_no_choice(shown: list[ImageRow]) -> None:
    ids = torch.arange(20).view(10, 2)
    found = LatentData(encode_images(shown, data(), halves(), augment=True), input_ids=ids)
    batch = found.batch(np.array([3, 1]))
    assert set(batch) == {"latents", "input_ids"}
    assert (len(found), found.lengths) == (10, None)
    assert batch["latents"].shape == (2, 3, 16, 16)
    assert batch["input_ids"].tolist() == [[6, 7], [2, 3]]
    assert set(one_view(batch, ExampleRandom(0, 1, np.array([3, 1])))) == {"latents", "input_ids"}
    with pytest.raises(ValueError, match="10 images and 9 values of input_ids"):
        LatentData(found.latents, input_ids=ids[:9])


# --- captions -------------------------------------------------------------------------------------------------------


class Lengths:
    """States that say how long a caption is; counts the captions it was given."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([float(len(text)) for text in texts]).view(-1, 1, 1).expand(-1, 3, 2)


def test_each_caption_is_encoded_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS", 2)
    encoder, again, other = Lengths(), Lengths(), Lengths()
    texts = ["a", "bb", "a", "", "bb", "cccc"]
    states = encode_texts(texts, encoder, digest="d", folder=tmp_path, batch_size=1)["text_states"]
    assert encoder.asked == ["a", "bb", "", "cccc"]
    assert states[np.arange(6)][:, 2, 1].tolist() == [1, 2, 1, 0, 2, 4]
    assert len(states) == 6
    found = encode_texts(texts, again, digest="d", folder=tmp_path)["text_states"]
    assert again.asked == []
    assert torch.equal(found[np.arange(6)], states[np.arange(6)])
    encode_texts(texts, other, digest="of another encoder", folder=tmp_path)
    assert len(other.asked) == 4


def test_an_encoder_may_give_several_tensors(shown: list[ImageRow]) -> None:
    states = encode_texts(
        [row.prompt for row in shown],
        lambda texts: {"text_states": torch.ones(len(texts), 3, 2), "pooled": torch.zeros(len(texts), 5)},
        digest="d",
    )
    assert all(isinstance(one, Shared) for one in states.values())
    batch = LatentData(encode_images(shown, data(), halves()), **states).batch(np.array([0, 9]))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "latents": (2, 3, 16, 16), "text_states": (2, 3, 2), "pooled": (2, 5), "time_ids": (2, 6),
    }  # fmt: skip


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="text encoder gives numbers that are not finite"):
        encode_texts(["a"], lambda texts: torch.full((1, 1, 1), torch.nan), digest="d", folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="no captions"):
        encode_texts([], Lengths(), digest="d")
