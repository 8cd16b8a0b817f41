"""What a step reads, and images of adapted prompts, before a tiny random pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusion.tiny_pipelines import config_of, pipeline_folder
from privlm.runners.sur_adapter.adapter import SurAdapter
from privlm.runners.sur_adapter.data import SurData, Tokens
from privlm.runners.sur_adapter.drawing import Artist, seed_of
from privlm.runners.sur_adapter.vectors import Vectors
from torch import nn

from privlm.diffusion.conditioning import encode, tokenize
from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.pipelines import open_pipeline
from privlm.diffusion.sampling import Sampler

PROMPTS = ["navy disc", "a", "of two plum cones or three", "x y"]
SEEDS = [1, 2, 3, 4]


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def opened(request, tmp_path_factory):
    return open_pipeline(config_of(pipeline_folder(tmp_path_factory.mktemp("base") / request.param, request.param)))


def changed(width: int, **settings) -> SurAdapter:
    torch.manual_seed(0)
    adapter = SurAdapter(width, heads=2, feedforward=16, eta=1.0, **settings)
    nn.init.normal_(adapter.out.weight, std=1.0)
    return adapter


def artist(opened, batch_size: int = 4, *, both: bool = False, **settings) -> Artist:
    return Artist(opened.pipe(), Sampler(2, 3.0, batch_size), changed(opened.state_size, **settings), both)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("both", [False, True])
def test_images_are_the_same_whatever_the_batch(opened, both):
    together = artist(opened, 4, both=both).draw(PROMPTS, SEEDS)
    assert apart(together, artist(opened, 3, both=both).draw(PROMPTS, SEEDS)) <= 1


def test_without_eta_images_are_those_of_the_pipeline_to_the_bit(opened):
    plain = Artist(opened.pipe(), Sampler(2, 3.0, 4)).draw(PROMPTS, SEEDS)
    assert np.array_equal(artist(opened).draw(PROMPTS, SEEDS, eta=0.0), plain)
    assert apart(artist(opened).draw(PROMPTS, SEEDS), plain) > 2


def test_an_adapter_in_training_draws_without_dropout_and_trains_on(opened):
    own = artist(opened, dropout=0.9)
    own.adapter.train()
    assert np.array_equal(own.draw(PROMPTS[:1], SEEDS[:1]), own.draw(PROMPTS[:1], SEEDS[:1]))
    assert own.adapter.training


def test_seeds_of_places_differ_and_come_again():
    seeds = [seed_of(0, place) for place in range(100)]
    assert len(set(seeds)) == 100
    assert seeds == [seed_of(0, place) for place in range(100)]
    assert seeds[0] != seed_of(1, 0)


def test_tokens_are_those_that_the_pipeline_reads_and_their_padding_is_known(opened):
    tokens = Tokens.of(opened, [*PROMPTS, "a word too many " * 9])
    assert torch.equal(tokens.ids[:4], tokenize(opened, PROMPTS))
    assert tokens.mask.sum(1).tolist()[1] == 3  # begin, a, end
    assert tokens.num_cut == 1
    assert bool(tokens.mask[4].all())
    states = Denoiser(opened.unet, opened.text_encoder).states(tokens.ids[:4])
    torch.testing.assert_close(states, encode(opened.pipe(), PROMPTS).states)


class Latents:
    lengths = None

    def __len__(self):
        return len(PROMPTS)

    def batch(self, indices):
        return {"latents": torch.from_numpy(indices).float().view(-1, 1, 1, 1)}


def test_a_batch_holds_what_belongs_together(opened):
    narrative, keywords = Tokens.of(opened, PROMPTS), Tokens.of(opened, PROMPTS[::-1])
    vectors = Vectors({prompt: torch.full((1, 5), float(place)) for place, prompt in enumerate(PROMPTS)}, {})
    data = SurData(Latents(), PROMPTS, narrative, keywords, vectors)
    batch = data.batch(np.array([2, 0]))
    assert batch["latents"].flatten().tolist() == [2.0, 0.0]
    assert torch.equal(batch["input_ids"], narrative.ids[[2, 0]])
    assert torch.equal(batch["keyword_ids"], narrative.ids[[1, 3]])
    assert batch["vectors"][:, 0, 0].tolist() == [2.0, 0.0]
    assert batch["vector_mask"].shape == (2, 1)
    assert len(data) == 4


def test_a_batch_without_keywords_or_vectors_has_none(opened):
    batch = SurData(Latents(), PROMPTS, Tokens.of(opened, PROMPTS)).batch(np.array([1]))
    assert set(batch) == {"latents", "input_ids", "text_mask"}
