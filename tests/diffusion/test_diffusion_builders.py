"""`privlm build shapes_cnn`, below the command line."""

import subprocess
import sys

import pytest

from privlm.diffusion import classifier_training
from privlm.diffusion.builders import BUILDERS
from privlm.diffusion.classifier import ShapesCnn, load_classifier
from privlm.errors import UsageError


@pytest.fixture
def trained(monkeypatch):
    """What training was asked for; it takes minutes."""
    asked = []

    def train(seed, steps):
        asked.append((seed, steps))
        return ShapesCnn()

    monkeypatch.setattr(classifier_training, "train", train)
    monkeypatch.setattr(classifier_training, "share_named_right", lambda classifier: 0.999)
    return asked


def test_what_it_makes_is_loaded_by_its_folder(trained, tmp_path):
    said = BUILDERS["shapes_cnn"](tmp_path / "made", ["seed=7"])
    assert trained == [(7, 2_500)]
    assert load_classifier(tmp_path / "made").digest[:12] in said
    assert "99.90%" in said


def test_a_network_that_has_learnt_too_little_is_no_judge(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(classifier_training, "share_named_right", lambda classifier: 0.5)
    with pytest.raises(UsageError, match=r"steps=3: the network names 50.0% of fresh renders right, and 98%"):
        BUILDERS["shapes_cnn"](tmp_path / "made", ["steps=3"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"), [("steps=0", "steps"), ("steps=many", "steps"), ("sead=1", "sead"), ("seed=-1", "seed")]
)
def test_unknown_and_wrong_fields_are_refused_before_anything_is_made(trained, tmp_path, word, message):
    with pytest.raises(UsageError, match=message):
        BUILDERS["shapes_cnn"](tmp_path / "made", [word])
    assert trained == []
    assert not list(tmp_path.iterdir())


def test_listing_the_builders_needs_nothing_heavy():
    code = "import sys, privlm.diffusion.builders; print({'torch', 'diffusers', 'PIL', 'numpy'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
