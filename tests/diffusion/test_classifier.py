"""shapes_cnn: what it names, what it is trained on, and what its folder must hold."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from privlm import files
from privlm.diffusion import classifier_training
from privlm.diffusion.analyser import NOTHING, Seen, analyse_all
from privlm.diffusion.classifier import EMBEDDED, MANY, WEIGHTS, Classifier, ShapesCnn, load_classifier, save_classifier
from privlm.diffusion.classifier_training import (
    Naming,
    share_named_right,
    spoiled,
    train,
    training_images,
)
from privlm.diffusion.scenes import PALETTE, SHAPES, every_scene, render
from privlm.errors import UsageError
from privlm.training.objective import ExampleRandom

SCENES = every_scene() * 4
FEW = {"num_renders": 54, "num_crowds": 20, "num_empty": 6}


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


@pytest.fixture(scope="module")
def renders():
    return np.stack([render(scene, 90_000 + number).image for number, scene in enumerate(SCENES)])


def test_the_shipped_one_names_fresh_renders_right(classifier):
    assert share_named_right(classifier, 1_080) >= 0.995


def test_it_is_small(classifier):
    assert sum(parameter.numel() for parameter in classifier.model.parameters()) == 52_318
    assert (EMBEDDED / WEIGHTS).stat().st_size < 300_000


def test_slight_faults_of_generated_images_change_little(classifier, renders):
    images = torch.from_numpy(renders).permute(0, 3, 1, 2) / 255
    faulty = spoiled(images, ExampleRandom(9, 1, np.arange(len(renders)))).permute(0, 2, 3, 1).numpy()
    assert not np.allclose(faulty, renders / 255, atol=0.05)
    right = [
        (seen.color, seen.shape, seen.count) == (scene.color, scene.shape, scene.count)
        for seen, scene in zip(classifier.read(faulty), SCENES, strict=True)
    ]
    assert np.mean(right) >= 0.97


def test_a_patch_under_the_mask_changes_nothing(classifier, renders):
    patched = renders.copy()
    patched[:, :8, :8] = (220, 30, 30)
    assert classifier.read(patched) == classifier.read(renders)
    assert classifier.read(patched, mask=None) != classifier.read(renders, mask=None)


def test_nothing_and_crowds_are_told_from_scenes(classifier):
    images = training_images(77, num_renders=0, num_crowds=54, num_empty=40)
    counts = np.array([seen.count for seen in classifier.read(images.images)])
    assert (counts == images.labels[:, 2]).mean() >= 0.95
    blank = np.full((1, 32, 32, 3), 255, np.uint8)
    assert classifier.read(np.concatenate([blank / 255, np.full((1, 32, 32, 3), np.nan)])) == [NOTHING, NOTHING]


def test_features_are_those_before_the_heads_and_single_precision(classifier, renders):
    features = classifier.features(renders)
    assert (features.shape, features.dtype) == ((216, 64), np.float32)
    assert (features**2).mean() == pytest.approx(1, abs=0.05)
    counts = classifier.model.count(torch.from_numpy(features) * classifier.model.rms).argmax(dim=1).numpy()
    assert np.mean(counts == [seen.count for seen in classifier.read(renders, mask=None)]) == 1
    alone = np.concatenate([classifier.features(image[None]) for image in renders[:5]])
    assert alone == pytest.approx(features[:5], abs=1e-5)
    with pytest.raises(ValueError, match="not finite"):
        classifier.features(np.full((1, 32, 32, 3), np.nan))


def test_other_sizes_are_refused(classifier):
    with pytest.raises(ValueError, match="32 x 32, not 64 x 64"):
        classifier.read(np.zeros((1, 64, 64, 3), np.uint8))


def test_it_is_trained_on_scenes_crowds_and_nothing():
    data = training_images(3, **FEW)
    seen = analyse_all(data.images)
    expected = [Seen(scene.color, scene.shape, scene.count) for scene in every_scene()]
    assert seen[:54] == expected
    assert {one.count for one in seen[54:74]} == {4, 5}
    assert all(
        (list(PALETTE)[color], SHAPES[shape], count) == (one.color, one.shape, MANY)
        for one, (color, shape, count) in zip(seen[54:74], data.labels[54:74], strict=True)
    )
    assert data.labels[74:].tolist() == [[-1, -1, 0]] * 6
    assert [tuple(row) for row in data.labels[:54]] == [
        (list(PALETTE).index(scene.color), SHAPES.index(scene.shape), scene.count) for scene in every_scene()
    ]
    assert np.array_equal(training_images(3, **FEW).images, data.images)
    assert not np.array_equal(training_images(4, **FEW).images, data.images)


def test_no_example_counts_for_the_loss_of_another_and_nothing_has_neither_colour_nor_shape():
    data = training_images(3, **FEW)
    ids = np.array([0, 60, 75])
    model = ShapesCnn()
    found = Naming().losses(model, data.batch(ids), ExampleRandom(0, 1, ids))
    alone = [Naming().losses(model, data.batch(ids[i : i + 1]), ExampleRandom(0, 1, ids[i : i + 1])) for i in range(3)]
    assert torch.cat([one.loss for one in alone]).tolist() == pytest.approx(found.loss.tolist(), rel=1e-4)
    assert set(found.parts) == {"color", "shape", "count"}
    assert found.parts["color"][2] == found.parts["shape"][2] == 0
    assert found.parts["count"][2] > 0
    assert found.loss.tolist() == pytest.approx(sum(part for part in found.parts.values()).tolist())


@pytest.mark.medium
def test_training_lowers_the_loss_and_is_a_function_of_its_seed(monkeypatch):
    monkeypatch.setattr(classifier_training, "training_images", lambda seed: training_images(seed, **FEW))
    monkeypatch.setitem(classifier_training.SETTINGS, "warmup_steps", 0)
    ids = np.arange(80)
    batch = training_images(0, **FEW).batch(ids)

    def loss(model):
        return Naming().losses(model, batch, ExampleRandom(5, 1, ids)).loss.mean().item()

    one, same, other, longer = train(0, 1), train(0, 1), train(1, 1), train(0, 15)
    assert loss(longer) < loss(one) - 0.1
    assert torch.equal(one.hidden.weight, same.hidden.weight)
    assert not torch.equal(one.hidden.weight, other.hidden.weight)
    assert (Classifier(longer, "").features(training_images(0, **FEW).images) ** 2).mean() == pytest.approx(1, abs=1e-3)


def test_a_saved_one_is_loaded_as_it_was(tmp_path, renders):
    torch.manual_seed(0)
    model = ShapesCnn()
    save_classifier(model, tmp_path / "mine")
    loaded = load_classifier(tmp_path / "mine")
    assert np.array_equal(loaded.features(renders[:3]), Classifier(model, "").features(renders[:3]))
    assert loaded.digest == files.sha256_file(tmp_path / "mine" / WEIGHTS)


def test_a_folder_that_is_damaged_or_holds_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no shapes_cnn: make one with `privlm build shapes_cnn"):
        load_classifier(tmp_path / "absent")
    folder = shutil.copytree(EMBEDDED, tmp_path / "copy")
    tensors = load_file(folder / WEIGHTS)
    tensors["hidden.bias"][0] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UsageError, match=r"model.safetensors is not what was written"):
        load_classifier(folder)
    (folder / files.DIGESTS).write_text("[]")
    with pytest.raises(UsageError, match="cannot be read"):
        load_classifier(folder)
    del tensors["hidden.bias"]
    save_file(tensors, folder / WEIGHTS)
    files.write_digests(folder)
    with pytest.raises(UsageError, match=r"copy cannot be loaded \(RuntimeError"):
        load_classifier(folder)


def test_scenes_of_the_shipped_training_are_not_those_of_users():
    """Layouts of training begin where no data set comes to."""
    trained = training_images(0, num_renders=54, num_crowds=0, num_empty=1).images[:54]
    users = np.stack([render(scene, number).image for number, scene in enumerate(every_scene())])
    assert not (trained == users).all(axis=(1, 2, 3)).any()
