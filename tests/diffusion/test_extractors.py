"""Feature extractors by name."""

import sys
from types import ModuleType

import numpy as np
import pytest

from privlm.diffusion import extractors
from privlm.diffusion.extractors import open_extractor
from privlm.errors import UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def test_shapes_cnn_is_at_hand():
    features = open_extractor("shapes_cnn")(IMAGES)
    assert features.shape == (5, 64)
    assert features.dtype == np.float64


@pytest.mark.parametrize("name", ["shapes_cn", "incepton"])
def test_an_unknown_name_is_refused_with_the_nearest(name):
    near = {"shapes_cn": "shapes_cnn", "incepton": "inception"}[name]
    with pytest.raises(UsageError, match=f"no extractor '{name}'; did you mean {near}"):
        open_extractor(name)


@pytest.fixture
def own_module(monkeypatch):
    module = ModuleType("my_features")
    module.means = lambda images: images.mean(axis=(1, 2))
    module.flat = lambda images: images.mean()
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_features", module)


@pytest.mark.usefixtures("own_module")
def test_a_dotted_path_is_a_function_of_images():
    extractor = open_extractor("my_features.means")
    assert extractor.name == "my_features.means"
    assert extractor(IMAGES) == pytest.approx(IMAGES.mean(axis=(1, 2)))
    with pytest.raises(UsageError, match=r"my_features.flat gave features of shape \[\] for 5 images"):
        open_extractor("my_features.flat")(IMAGES)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_features.absent", "cannot be imported"),
        ("no_such_package.features", "cannot be imported"),
        (".relative", "cannot be imported"),
        ("my_features.number", "is no function"),
    ],
)
def test_a_dotted_path_that_leads_nowhere_is_refused(path, message):
    with pytest.raises(UsageError, match=f"extractor {path} {message}"):
        open_extractor(path)


def test_clip_needs_its_folder():
    with pytest.raises(UsageError, match="clip needs the local folder of a CLIPModel"):
        open_extractor("clip")


def test_inception_says_what_is_missing_and_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torchmetrics torch-fidelity, or take shapes_cnn"):
        open_extractor("inception")
    monkeypatch.setattr(extractors, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="never downloaded: give its path"):
        open_extractor("inception")
    with pytest.raises(UsageError, match=r"never downloaded: .*absent.pth is no file"):
        open_extractor("inception", tmp_path / "absent.pth")


def test_inception_is_given_bytes_and_the_file_of_its_weights(monkeypatch, tmp_path):
    """With a network of the same signature in its place: the real one takes 90 MB of weights."""
    asked = []

    class Network:
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            asked.append((name, features_list, feature_extractor_weights_path))

        def __call__(self, images):
            assert images.shape[1:] == (3, 32, 32)
            return images.float().mean(dim=(2, 3))

    module = ModuleType("torchmetrics.image.fid")
    module.NoTrainInceptionV3 = Network
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    monkeypatch.setattr(extractors, "find_spec", lambda name: object())
    monkeypatch.setattr(extractors, "MICRO_BATCH", 2)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    extractor = open_extractor("inception", weights)
    assert asked == [("inception-v3-compat", ["2048"], str(weights))]
    assert extractor(IMAGES / 255) == pytest.approx(IMAGES.mean(axis=(1, 2)), abs=1e-3)
