"""The adapter as files: what is kept, what comes back, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from privlm.runners.sur_adapter import artefact
from privlm.runners.sur_adapter.losses import SurModel
from privlm.runners.sur_adapter.model import load_sur
from privlm.runners.sur_adapter.vectors import Vectors
from safetensors.torch import load_file, save_file
from support.composed import composed
from torch import nn

from privlm.errors import UsageError

WIDTH = 32
VECTORS = Vectors({"": torch.zeros(1, 6)}, {"llm": "somebody", "layer": -1, "pooling": "last", "norm": "raw"})


def opened(width: int = WIDTH, digest: str = "a" * 64) -> SimpleNamespace:
    return SimpleNamespace(
        unet=nn.Linear(1, 1), text_encoder=nn.Linear(1, 1), state_size=width, digest=digest, family="sd1"
    )


def loaded(*words: str, width: int = WIDTH, digest: str = "a" * 64, vectors: Vectors | None = VECTORS):
    return load_sur(composed("task=sur_adapter", *words), opened(width, digest), vectors)


def trained(own) -> SurModel:
    with torch.no_grad():
        for parameter in own.model.parameters():
            parameter.add_(0.1)
    return own.model


@pytest.fixture
def folder(tmp_path):
    own = loaded()
    own.save(trained(own), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("proj", ["train", "frozen"])
def test_what_was_trained_comes_back_to_the_bit_the_projection_too(tmp_path, proj):
    """D4 and D5."""
    own = loaded(f"adapter.proj={proj}")
    before = trained(own)
    own.save(before, tmp_path / "model")
    again = own.fresh()
    assert not torch.equal(again.model.adapter.query.weight, before.adapter.query.weight)
    again.load(again.model, tmp_path / "model")
    parts = before.state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in again.model.state_dict().items())
    assert any(name.startswith("projection.") for name in load_file(tmp_path / "model" / artefact.WEIGHTS))


def test_the_base_is_not_among_the_files(folder):
    assert {name.partition(".")[0] for name in load_file(folder / artefact.WEIGHTS)} == {"adapter", "projection"}
    assert sorted(path.name for path in folder.iterdir()) == [artefact.WEIGHTS, artefact.ABOUT]


def test_the_files_say_what_they_were_made_for(folder):
    about = artefact.read(folder).about
    assert about["base"] | {"model": None} == {
        "name": "tiny_sd", "digest": "a" * 64, "family": "sd1", "width": WIDTH, "model": None,
    }  # fmt: skip
    assert about["llm"] == {"llm": "somebody", "layer": -1, "pooling": "last", "norm": "raw", "width": 6}
    assert about["adapter"]["eta"] == 0.5
    assert about["losses"]["w_align"] == 0.1
    assert about["sampling"]["steps"] == 20


def test_the_adapter_alone_computes_the_same_with_no_more_than_the_files(folder):
    own = loaded()
    own.load(own.model, folder)
    torch.manual_seed(0)
    states = torch.randn(2, 5, WIDTH)
    assert torch.equal(artefact.read(folder).adapter()(states).states, own.model.eval().adapter(states).states)


def test_a_base_of_another_width_is_refused_with_both_numbers(folder):
    """D10."""
    with pytest.raises(UsageError, match=r"states of 32 numbers \(tiny_sd\), and this model has 1024"):
        artefact.read(folder).require_base(1024, "a" * 64, allow_other=True)


def test_another_base_of_the_same_width_is_refused_unless_it_is_meant(folder):
    with pytest.raises(UsageError, match="allow_other_base=true"):
        artefact.read(folder).require_base(WIDTH, "b" * 64)
    artefact.read(folder).require_base(WIDTH, "b" * 64, allow_other=True)


@pytest.mark.parametrize(
    ("words", "changes"),
    [(("seed=1",), {}), (("adapter.depth=1",), {}), ((), {"digest": "b" * 64}), ((), {"vectors": None})],
)
def test_a_run_of_another_configuration_does_not_take_it_up(folder, words, changes):
    own = loaded(*words, **changes)
    with pytest.raises(UsageError, match="give the configuration that it was trained with"):
        own.load(own.model, folder)


def test_untrained_weights_are_a_function_of_the_seed_alone():
    one, other, third = loaded(), loaded(), loaded("seed=1")
    same = one.model.adapter.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in other.model.adapter.state_dict().items())
    assert not torch.equal(third.model.adapter.query.weight, one.model.adapter.query.weight)
    assert one.digest == other.digest != third.digest


def without_weights(folder) -> None:
    (folder / artefact.WEIGHTS).unlink()


def other_weights(folder) -> None:
    """Of another training, say."""
    tensors = load_file(folder / artefact.WEIGHTS)
    save_file({name: value + 1 for name, value in tensors.items()}, folder / artefact.WEIGHTS)


def other_settings(folder) -> None:
    path = folder / artefact.ABOUT
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"method": "another"}))


def later_format(folder) -> None:
    from privlm import files

    about = files.read_json(folder / artefact.ABOUT)
    files.write_json(folder / artefact.ABOUT, about | {"format": 2})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "holds no SUR adapter: no adapter.safetensors"),
        (other_weights, "has changed since it was saved"),
        (other_settings, "is damaged"),
        (later_format, "is of format 2; this version reads 1"),
    ],
)
def test_damaged_files_are_refused_by_name(folder, damage, message):
    """D6: and no file is unpickled."""
    damage(folder)
    with pytest.raises(UsageError, match=message):
        artefact.read(folder)


def test_weights_of_another_shape_are_refused(folder):
    own = loaded("adapter.feedforward=64")
    tensors = artefact.read(folder).tensors
    with pytest.raises(UsageError, match=r"encoder.0.linear1.weight is \[128, 32\], not \[64, 32\]"):
        artefact.put(nn.ModuleDict({"adapter": own.model.adapter, "projection": own.model.projection}), tensors, "it")
