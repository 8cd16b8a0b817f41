"""Images of prompts, by the pipeline as it is or with an adapter of its states; and how they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privlm import files
from privlm.diffusion.conditioning import Conditioning, encode, encode_negative
from privlm.diffusion.sampling import Sampler
from privlm.job import Stage
from privlm.models.evaluation_mode import evaluation_mode
from privlm.privacy import keyed_random

from .adapter import SurAdapter


@dataclass(frozen=True)
class Artist:
    """pipe: of diffusers. adapter: None leaves the prompts as they are. both: see SurAdapter.steer."""

    pipe: Any
    sampler: Sampler
    adapter: SurAdapter | None = None
    both: bool = False

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], eta: float | None = None) -> np.ndarray:
        """uint8 [N, H, W, 3], the i-th of prompt i and seed i. eta: in place of the adapter's own."""
        with _without_words():
            if self.adapter is None:
                return self.sampler.generate(self.pipe, prompts, seeds)
            negative = encode_negative(self.pipe, self.sampler.negative_prompt).states.expand(len(prompts), -1, -1)
            states, negative = self._steered(encode(self.pipe, prompts).states, negative, eta)
            return self.sampler.generate(self.pipe, Conditioning(states), seeds, Conditioning(negative))

    @torch.no_grad()
    def _steered(self, states: Tensor, negative: Tensor, eta: float | None) -> tuple[Tensor, ...]:
        """The adapter computes in its own precision, a few prompts at a time."""
        assert self.adapter is not None
        dtype, size, pieces = states.dtype, self.sampler.batch_size, []
        with evaluation_mode(self.adapter):
            for one, other in zip(states.float().split(size), negative.float().split(size), strict=True):
                pieces.append(self.adapter.steer(one, other, eta=eta, both=self.both))
        return tuple(torch.cat(side).to(dtype) for side in zip(*pieces, strict=True))


@contextmanager
def _without_words() -> Iterator[None]:
    """diffusers writes out what it cuts of prompts, which are data; how many are cut is told in numbers (.told)."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def seed_of(seed: int, place: int) -> int:
    """Of the image of a prompt at this place: all that is compared is drawn from the same noise."""
    return keyed_random.key_bits("image of a prompt", seed, place) >> 65


def kept(stage: Stage, name: str, num: int, draw: Callable[[Sequence[int]], np.ndarray], batch: int) -> np.ndarray:
    """Images uint8 [num, H, W, 3] of a stage, drawn by the main process or read back.

    draw: places -> their images; asked for `batch` at a time, between which a request to stop is honoured. Batches that
    an earlier try has drawn are not drawn again.
    """
    pieces = []
    with stage.job.progress(f"{stage.name}: {name}", num, interruptible=stage.needed) as tick:
        for start in range(0, num, batch):
            places = range(start, min(start + batch, num))
            path = stage.folder / "images" / f"{name}-{start:06}.npy"
            if stage.needed and stage.job.is_main and not path.is_file():
                path.parent.mkdir(exist_ok=True)
                _write(path, draw(places))
            if stage.needed and stage.job.is_main:
                stage.output(path)
            stage.job.wait_for_everyone()
            pieces.append(np.load(path, allow_pickle=False))
            tick(places.stop)
    return np.concatenate(pieces)


def _write(path: Path, images: np.ndarray) -> None:
    def fill(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, images)

    files.write_file(path, fill)
