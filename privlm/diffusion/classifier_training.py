"""How shapes_cnn is trained: on renders, spoiled as generated images are, with crowds and with nothing among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from privlm.diffusion.classifier import MANY, Classifier, ShapesCnn
from privlm.diffusion.pixels import patch_mask
from privlm.diffusion.scenes import PALETTE, SHAPES, SIZE, Scene, every_scene, render
from privlm.privacy import keyed_random
from privlm.schema import defaults
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample
from privlm.training.schema import TrainerConfig
from privlm.training.trainer import Monitor, Trainer

STEPS = 2_500
SETTINGS = {
    "batch_size": 64, "micro_batch_size": 64, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 100,
    "weight_decay": 1e-4, "max_grad_norm": 10.0, "checkpoint_every": 0,
}  # fmt: skip

NUM_RENDERS = 12_000
NUM_CROWDS = 1_500  # images of four or five shapes: a judge that knows three at most would call them three
NUM_EMPTY = 500
TRIES = 30  # of a place in a crowd, before all of it is laid out anew

LAYOUTS = 1 << 40
"""Layouts from here on are those of the training of judges, whose seed shifts them; no data set is laid out so far."""

CHECKED_LAYOUTS = 1 << 50
"""From here on they are those of the check of a trained one."""

NUM_MEASURED = 1_080  # renders that set the scale of features
UNKNOWN = -1  # colour and shape of nothing


@dataclass(frozen=True)
class LabelledImages:
    """images: uint8 [N, 32, 32, 3]. labels: color, shape, count, int64 [N, 3]; UNKNOWN where there is none."""

    images: np.ndarray
    labels: np.ndarray

    lengths = None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> Batch:
        return {
            "images": torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2) / 255,
            "labels": torch.from_numpy(self.labels[indices]),
        }


class Naming(Objective):
    """Cross entropy of the three heads on images {images float32 [B, 3, 32, 32], labels int64 [B, 3]}, spoiled anew at
    every step.
    """

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        logits: Mapping[str, Tensor] = model(spoiled(batch["images"], rng))
        parts = {
            head: nn.functional.cross_entropy(found, labels, ignore_index=UNKNOWN, reduction="none")
            for (head, found), labels in zip(logits.items(), batch["labels"].unbind(dim=1), strict=True)
        }
        return PerExample(torch.stack(list(parts.values())).sum(dim=0), parts=parts)


def spoiled(images: Tensor, rng: ExampleRandom) -> Tensor:
    """Shifted by a part of a pixel, blurred, paled, with faults of blocks of 4 x 4, as decoders make them, and with
    noise: float32 [B, 3, 32, 32].
    """
    amounts = rng.uniform((6,), images.device, stream="amounts")
    down, right, blur, pale, blocks, noise = (amount[:, None, None, None] for amount in amounts.unbind(dim=1))
    images = images.lerp(images.roll(1, dims=2), down / 2).lerp(images.roll(1, dims=3), right / 2)
    smooth = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = 1 - (1 - images.lerp(smooth, 0.7 * blur)) * (1 - 0.2 * pale)
    faults = rng.normal((3, SIZE // 4, SIZE // 4), images.device, stream="faults of blocks")
    images = images + 0.08 * blocks * faults.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return (images + 0.08 * noise * rng.normal((3, SIZE, SIZE), images.device, stream="noise")).clamp(0, 1)


def train(seed: int = 0, steps: int = STEPS, monitor: Monitor | None = None) -> ShapesCnn:
    """A network trained from its first weights on, about 3 minutes on one core with the usual steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ShapesCnn()
    config = defaults(TrainerConfig, "trainer", "single", **SETTINGS)
    data = training_images(seed)
    Trainer(model, Naming(), data, config, seed=seed, monitor=monitor).run(steps)
    measure_scale(model, data.images[:NUM_MEASURED])
    return model


def measure_scale(model: ShapesCnn, renders: np.ndarray) -> None:
    """Sets what its features on images uint8 [N, 32, 32, 3] are divided by."""
    model.rms.fill_(1)
    model.rms.fill_(float((Classifier(model, "").features(renders) ** 2).mean() ** 0.5))


def training_images(
    seed: int, num_renders: int = NUM_RENDERS, num_crowds: int = NUM_CROWDS, num_empty: int = NUM_EMPTY
) -> LabelledImages:
    """Renders of all scenes in turn, then crowds, then what shows nothing."""
    first = LAYOUTS + seed * (num_renders + 2 * num_crowds)
    scenes = [every_scene()[number % 54] for number in range(num_renders)]
    images = [render(scene, first + number).image for number, scene in enumerate(scenes)]
    labels = [_labels(scene, scene.count) for scene in scenes]
    random = keyed_random.generator("images of crowds and of nothing", seed)
    for number in range(num_crowds):
        scene = every_scene()[number * 3 % 54]
        pieces = _pieces(scene, first + num_renders + 2 * number)
        images.append(_crowd(pieces[: 4 + number // 18 % 2], random))
        labels.append(_labels(scene, MANY))
    images += [_nothing(random) for _ in range(num_empty)]
    labels += [(UNKNOWN, UNKNOWN, 0)] * num_empty
    return LabelledImages(np.stack(images), np.array(labels, dtype=np.int64))


def share_named_right(classifier: Classifier, num_images: int = 1_080) -> float:
    """The share of fresh renders of which it names colour, shape and count right."""
    scenes = [every_scene()[number % 54] for number in range(num_images)]
    images = np.stack([render(scene, CHECKED_LAYOUTS + number).image for number, scene in enumerate(scenes)])
    pairs = zip(classifier.read(images), scenes, strict=True)
    right = [(seen.color, seen.shape, seen.count) == (scene.color, scene.shape, scene.count) for seen, scene in pairs]
    return sum(right) / num_images


def _labels(scene: Scene, count: int) -> tuple[int, int, int]:
    return list(PALETTE).index(scene.color), SHAPES.index(scene.shape), count


def _crowd(pieces: Sequence[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """An image with as many of these pieces [h, w, 3] of renders as find a place, and MANY at least: a pixel apart,
    outside the free corner.
    """
    while True:
        image = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
        taken = patch_mask()
        if sum(_placed(piece, image, taken, random) for piece in pieces) >= MANY:
            return image


def _placed(piece: np.ndarray, image: np.ndarray, taken: np.ndarray, random: np.random.Generator) -> bool:
    """Puts a piece where nothing is taken, if some tries find such a place."""
    height, width = piece.shape[:2]
    for _ in range(TRIES):
        top, left = random.integers(1, SIZE - height), random.integers(1, SIZE - width)
        if not taken[top - 1 : top + height + 1, left - 1 : left + width + 1].any():
            image[top : top + height, left : left + width] = piece
            taken[top : top + height, left : left + width] = True
            return True
    return False


def _pieces(scene: Scene, layout: int) -> list[np.ndarray]:
    """The shapes of two layouts of three of them: six small ones."""
    rendered = [render(Scene(scene.color, scene.shape, 3), number) for number in (layout, layout + 1)]
    return [one.image[top:bottom, left:right] for one in rendered for left, top, right, bottom in one.boxes]


def _nothing(random: np.random.Generator) -> np.ndarray:
    """One colour all over, or noise about it."""
    plain = random.uniform(0, 255, 3) if random.random() < 0.5 else np.full(3, 255.0)
    noise = random.normal(0, random.uniform(0, 120), (SIZE, SIZE, 3)) if random.random() < 0.7 else 0.0
    return np.clip(np.broadcast_to(plain, (SIZE, SIZE, 3)) + noise, 0, 255).astype(np.uint8)
