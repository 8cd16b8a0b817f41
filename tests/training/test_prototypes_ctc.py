"""A line recogniser: convolution, a linear layer for each column, and the CTC loss of each line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.regression import settings, trained
from torch import Tensor, nn

from privlm.config import PrivacyConfig, defaults
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import make_plan
from privlm.privacy.sampling import PoissonSampler
from privlm.training.evaluation import Evaluation
from privlm.training.objective import ExampleRandom, Objective, PerExample
from privlm.training.trainer import Private

NUM_LINES, HEIGHT, GLYPH, NUM_SYMBOLS = 48, 6, 5, 3  # pixels of a line and of a symbol; symbols beside the blank


class Lines:
    """Images of one to four random symbols, each a pattern of its own, with a little noise."""

    lengths = None

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        glyphs = rng.random((NUM_SYMBOLS, HEIGHT, GLYPH)).round()
        self.texts = [rng.integers(0, NUM_SYMBOLS, rng.integers(1, 5)) for _ in range(NUM_LINES)]
        self.images = [np.concatenate([glyphs[symbol] for symbol in text], axis=1) for text in self.texts]
        self.images = [(image + 0.1 * rng.standard_normal(image.shape)).astype(np.float32) for image in self.images]

    def __len__(self) -> int:
        return NUM_LINES

    def batch(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Padded to the widest line: image [B, 1, H, W], width [B], text [B, L] (blank is 0), num_symbols [B]."""
        widths = [self.images[i].shape[1] for i in indices]
        counts = [len(self.texts[i]) for i in indices]
        image, text = torch.zeros(len(indices), 1, HEIGHT, max(widths)), torch.ones(len(indices), 4, dtype=torch.long)
        for row, i in enumerate(indices):
            image[row, 0, :, : widths[row]] = torch.from_numpy(self.images[i])
            text[row, : counts[row]] = torch.from_numpy(self.texts[i] + 1)
        return {"image": image, "width": torch.tensor(widths), "text": text, "num_symbols": torch.tensor(counts)}


class Recogniser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 12, (HEIGHT, 5), padding=(0, 2))
        self.out = nn.Linear(12, NUM_SYMBOLS + 1)

    def forward(self, image: Tensor) -> Tensor:
        """Log probabilities [B, W, 1 + symbols] of each column."""
        columns = self.conv(image).relu().squeeze(2).transpose(1, 2)
        return self.out(columns).log_softmax(-1)


class CTC(Objective):
    def losses(self, model: nn.Module, batch: Any, rng: ExampleRandom) -> PerExample:
        log_probabilities = model(batch["image"]).transpose(0, 1)
        loss = nn.functional.ctc_loss(
            log_probabilities, batch["text"], batch["width"], batch["num_symbols"], reduction="none", zero_infinity=True
        )
        return PerExample(loss / batch["num_symbols"])


@torch.no_grad()
def read_rightly(model: nn.Module) -> dict[str, float]:
    """Share of the lines whose best path is their text."""
    lines = Lines()
    right = 0
    for i in range(NUM_LINES):
        path = model(lines.batch(np.array([i]))["image"])[0].argmax(-1)
        symbols = path[torch.cat([torch.tensor([True]), path[1:] != path[:-1]])]
        right += symbols[symbols > 0].tolist() == (lines.texts[i] + 1).tolist()
    return {"accuracy": right / NUM_LINES}


def test_line_recogniser_learns_to_read() -> None:
    config = settings(optimizer="adamw", learning_rate=0.02, batch_size=16, micro_batch_size=8, schedule="onecycle")
    run = trained(CTC(), 150, Recogniser(), data=Lines(), config=config, evaluation=Evaluation("train", read_rightly))
    assert read_rightly(Recogniser())["accuracy"] < 0.1
    assert run.rows[-1][2]["accuracy"] > 0.9


@pytest.mark.parametrize("micro_batch_size", [1, 5, 32])
def test_private_sum_is_that_of_a_loop_over_the_lines(micro_batch_size: int) -> None:
    """One step of SGD without noise moves the weights by the sum of the clipped gradients over the expected size."""
    norm, batch_size = 0.5, 16
    privacy = defaults(
        PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, delta=1e-3, clipping_norm=norm,
        rng="reproducible",
    )  # fmt: skip
    plan = make_plan(privacy, dataset_size=NUM_LINES, batch_size=batch_size, steps=1)
    silent = Private(replace(plan, noise_multiplier=0.0), Ledger())
    config = settings(learning_rate=1.0, batch_size=batch_size, micro_batch_size=micro_batch_size)
    moved = trained(CTC(), 1, Recogniser(), data=Lines(), config=config, private=silent)

    model, total = Recogniser(), 0.0
    drawn = PoissonSampler(NUM_LINES, batch_size / NUM_LINES, seed=0).indices(1)
    for i in drawn:
        line = np.array([i])
        loss = CTC().losses(model, Lines().batch(line), ExampleRandom(0, 1, line)).loss.sum()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        total = total + gradient * min(1.0, norm / float(gradient.norm()))
    start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert len(drawn) > 5
    torch.testing.assert_close(torch.tensor(moved.weights), start - total / batch_size, rtol=1e-4, atol=1e-6)
