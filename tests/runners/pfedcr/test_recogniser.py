"""The recogniser, its gates, its two LSTMs, the CTC objective, and what is read greedily."""

from __future__ import annotations

from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from privlm.runners.pfedcr.alphabet import Alphabet
from privlm.runners.pfedcr.config import RecogniserConfig
from privlm.runners.pfedcr.contents import WORDS
from privlm.runners.pfedcr.ctc import CTC, Readings, collapsed, read
from privlm.runners.pfedcr.line import Line
from privlm.runners.pfedcr.line_data import LineData
from privlm.runners.pfedcr.recogniser import (
    Recogniser,
    is_attention,
    is_output,
    load_recogniser,
    with_fused_lstm,
)
from support.lines import ALPHABET, striped_lines
from support.regression import settings, trained

from privlm.config import defaults
from privlm.errors import UsageError
from privlm.training.objective import ExampleRandom

CLASSES = Alphabet.of(WORDS["small"].alphabet).num_classes


def recogniser(family: str = "crnn_small", height: int = 24, classes: int = CLASSES, **changes: Any) -> Recogniser:
    torch.manual_seed(0)
    return Recogniser(family, height, classes, **({"norm": "batch", "attention": "cbam"} | changes)).eval()


@pytest.mark.parametrize(
    ("family", "height", "classes", "attention", "number"),
    [
        ("crnn_small", 24, 53, "none", 186_021),
        ("crnn_small", 24, 53, "cbam", 187_945),
        ("crnn", 32, 53, "none", 8_732_469),
        ("crnn", 32, 5001, "none", 11_270_793),
    ],
)
def test_sizes_are_those_of_the_papers(family: str, height: int, classes: int, attention: str, number: int) -> None:
    for unrolled in (False, True):
        model = recogniser(family, height, classes, attention=attention, unrolled=unrolled)
        assert sum(parameter.numel() for parameter in model.parameters()) == number


@pytest.mark.parametrize("attention", ["cbam", "se"])
def test_gates_change_nothing_before_training(attention: str) -> None:
    gated, plain = recogniser(attention=attention), recogniser(attention="none")
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(map(is_attention, missing))
    image = torch.randn(2, 1, 24, 50)
    torch.testing.assert_close(gated(image), plain(image), rtol=0, atol=0)
    for name, parameter in gated.named_parameters():
        if is_attention(name):
            torch.nn.init.ones_(parameter)
    assert not torch.equal(gated(image), plain(image))


def test_names_tell_gates_and_output_layer() -> None:
    names = [name for name, _ in recogniser().named_parameters()]
    assert {name.split(".")[1] for name in names if is_attention(name)} == {"2", "3"}
    assert [name for name in names if is_output(name)] == ["out.weight", "out.bias"]


@pytest.mark.parametrize("family", ["crnn_small", "crnn"])
def test_both_lstms_are_one_function(family: str) -> None:
    height = 24 if family == "crnn_small" else 32
    fused = recogniser(family, height, attention="none")
    unrolled = recogniser(family, height, attention="none", unrolled=True)
    image = torch.randn(2, 1, height, 40)
    torch.testing.assert_close(unrolled(image), fused(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_fused_lstm(unrolled)(image), fused(image), rtol=0, atol=0)


@pytest.mark.parametrize("width", [33, 40, 57])
@pytest.mark.parametrize(("family", "height"), [("crnn_small", 24), ("crnn", 32)])
def test_frames_are_as_many_as_the_model_gives(family: str, height: int, width: int) -> None:
    model = recogniser(family, height)
    assert model(torch.zeros(1, 1, height, width)).shape[1] == int(model.num_frames(torch.tensor(width)))


def test_padding_has_the_grey_of_the_edge_and_labels_end_in_blanks() -> None:
    dark, light = Line(np.full((24, 10), 7, np.uint8), "a", "0"), Line(np.full((24, 30), 200, np.uint8), "fab", "1")
    batch = LineData([dark, light], ALPHABET).batch(np.array([0, 1]))
    assert batch["image"].shape == (2, 1, 24, 30)
    assert torch.unique(batch["image"][0]).tolist() == pytest.approx([7 / 127.5 - 1])
    assert batch["text"].tolist() == [[1, 0, 0], [6, 1, 2]]
    assert (batch["width"].tolist(), batch["num_symbols"].tolist()) == ([10, 30], [1, 3])


def test_a_batch_of_one_width_and_without_batchnorm_couples_no_lines() -> None:
    model = recogniser(classes=7, norm="group", unrolled=True).train()
    data = LineData(striped_lines(6), ALPHABET, width=120)
    every = np.arange(6)
    together = CTC().losses(model, data.batch(every), ExampleRandom(0, 1, every)).loss
    alone = [CTC().losses(model, data.batch(every[[i]]), ExampleRandom(0, 1, every[[i]])).loss for i in every]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_loss_is_of_all_paths_that_collapse_to_the_text() -> None:
    """Against a sum over all paths of a line of five frames."""
    model = recogniser(classes=3)
    line = Line(np.arange(240, dtype=np.uint8).reshape(24, 10), "ab", "0")
    batch = LineData([line], Alphabet.of("ab")).batch(np.array([0]))
    probabilities = model(batch["image"])[0].exp().detach()
    assert len(probabilities) == 5
    total = sum(
        float(torch.stack([probabilities[frame, symbol] for frame, symbol in enumerate(path)]).prod())
        for path in product(range(3), repeat=5)
        if [symbol for symbol, _ in groupby(path) if symbol] == [1, 2]
    )
    loss = CTC().losses(model, batch, ExampleRandom(0, 1, np.array([0]))).loss
    assert float(loss.detach()) == pytest.approx(-np.log(total) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("path", "classes"), [([], []), ([0, 0], []), ([1, 1], [1]), ([1, 0, 1], [1, 1]), ([2, 2, 0, 1, 1, 2], [2, 1, 2])]
)
def test_repeats_collapse_before_blanks_go(path: list[int], classes: list[int]) -> None:
    assert collapsed(path) == classes


@given(st.lists(st.integers(1, 3), max_size=6), st.integers(1, 3))
def test_any_text_comes_back_from_a_path_with_blanks_between(classes: list[int], repeats: int) -> None:
    path = [symbol for number in classes for symbol in [number] * repeats + [0]]
    assert collapsed(path) == classes


def test_what_is_read_of_a_line_does_not_depend_on_the_order_of_the_lines() -> None:
    model, lines = recogniser(classes=7), striped_lines(9)
    forwards, backwards = (read(model, LineData(part, ALPHABET)) for part in (lines, lines[::-1]))
    assert forwards.texts == backwards.texts[::-1]
    assert len(forwards.texts) == 9


class Certain(Recogniser):
    """Says of any line `a`, `a`, nothing, `b` and nothing, with these probabilities."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        classes, certain = torch.tensor([1, 1, 0, 2, 0]), torch.tensor([0.5, 0.8, 0.9, 0.7, 0.6])
        probabilities = ((1 - certain) / 6)[:, None].repeat(1, 7)
        probabilities[torch.arange(5), classes] = certain
        return probabilities.log().expand(len(image), 5, 7)


def test_a_reading_is_as_sure_as_its_least_certain_character_and_that_is_as_its_surest_frame() -> None:
    model = Certain("crnn_small", 24, 7, norm="batch", attention="none")
    readings = read(model, LineData([Line(np.zeros((24, 10), np.uint8), "a", "0")], ALPHABET))
    assert readings.texts == ["ab"]
    assert readings.confidences == pytest.approx([0.7])
    assert readings.blank_share == pytest.approx(0.4)


def test_a_recogniser_that_reads_all_lines_alike_is_on_the_plateau() -> None:
    assert Readings(["", "", ""], [0.9] * 3, 0.5).is_plateau
    assert Readings(["a", "b", ""], [0.9] * 3, 0.995).is_plateau
    assert not Readings(["a", "b", ""], [0.9] * 3, 0.9).is_plateau


@pytest.mark.medium
def test_it_learns_to_read() -> None:
    data = LineData(striped_lines(120), ALPHABET)
    model = recogniser(classes=7)
    config = settings(
        optimizer="adamw", learning_rate=5e-3, learning_rates={"attention": 5e-4}, batch_size=24, micro_batch_size=24,
        schedule="onecycle", max_grad_norm=5.0,
    )  # fmt: skip
    run = trained(CTC(), 80, model, data=data, config=config)
    test = striped_lines(40, seed=1)
    readings = read(run.model, LineData(test, ALPHABET))
    assert np.mean([text == line.text for text, line in zip(readings.texts, test, strict=True)]) > 0.8
    assert not readings.is_plateau


def test_a_model_is_saved_with_its_alphabet_and_another_one_is_refused(tmp_path: Path) -> None:
    config = defaults(RecogniserConfig, "model", "crnn_small")
    loaded, other = (load_recogniser(config, Alphabet.of(text), 0, unrolled=False) for text in ("abc", "abd"))
    loaded.save(loaded.model, tmp_path)
    with pytest.raises(UsageError, match=r"another alphabet .* lacks 'd' and has also 'c'"):
        other.load(other.model, tmp_path)
    again = loaded.fresh()
    again.load(again.model, tmp_path)
    image = torch.randn(1, 1, 24, 30)
    assert torch.equal(again.model(image), loaded.model(image))


def test_the_start_is_a_function_of_the_seed_alone() -> None:
    config = defaults(RecogniserConfig, "model", "crnn_small")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    models = [load_recogniser(config, ALPHABET, seed, unrolled=False).model for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    outputs = [model.out.weight for model in models]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
