"""A guide that sees images: the fusion by its formula and its gradients, privately too, and runs on such questions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from privacy.naive import clipped_sums, naive
from privlm.runners.pkg.fusion import Fusion, SeeingNextToken, seeing
from privlm.runners.pkg.guide import Guide, load_guide
from privlm.runners.pkg.questions import Question
from support.composed import composed
from support.zygote import Zygote

from privlm import files
from privlm.privacy.engine import PrivacyEngine
from privlm.training.objective import ExampleRandom

ROW = Question("0", "Which colour?", ("A",), ("red", "blue"), "It is painted.", "", (), "0", "", False, "file line 1")


def draw(folder: Path, number: int) -> str:
    """A picture with one shape; its name."""
    image = Image.new("RGB", (48, 40), "white")
    colour = ("red", "blue", "green")[number % 3]
    ImageDraw.Draw(image).rectangle([4 + number, 6, 30 + number, 30], fill=colour)
    image.save(folder / f"{number}.png")
    return f"{number}.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 questions of ScienceQA's schema, every other one with an image."""
    folder = tmp_path_factory.mktemp("scienceqa")
    rows = [
        {"id": str(n), "question": f"Which colour has thing {n}?", "options": ["red", "blue", "green"],
         "answer": "ABC"[n % 3], "background": f"Thing {n} was painted {('red', 'blue', 'green')[n % 3]}.",
         "context": f"A thing {n} is shown.", "image": draw(folder, n) if n % 2 else None}
        for n in range(20)
    ]  # fmt: skip
    for name, some in (("train", rows[:14]), ("test", rows[14:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def guide(folder: Path, *words: str) -> Guide:
    """Its fusions moved away from where they begin, at nothing."""
    made = load_guide(
        composed("task=pkg", "scale=smoke", "data=scienceqa", f"data.path={folder}", "task.vision=tiny", *words)
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in (one for one in made.loaded.model.parameters() if one.requires_grad):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return made


def rows(folder: Path, num: int = 4) -> list[Question]:
    return [replace(ROW, id=str(n), question=f"Which {n}?", image=draw(folder, n) if n else "") for n in range(num)]


def losses(model: Any, batch: Any) -> torch.Tensor:
    return SeeingNextToken().losses(model, batch, ExampleRandom(0, 0, np.arange(len(batch["labels"])))).loss


def test_the_fusion_is_the_formula_and_its_gradient_is_the_numerical_one() -> None:
    fusion = Fusion(6, 5, torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(fusion.out.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    text, image = (
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((2, 3, 6), (2, 4, 5))
    )
    has_image = torch.tensor([1.0, 0.0], dtype=torch.float64)
    fused = fusion(text, image, has_image)
    queries, keys, values = (
        text[0] @ fusion.query.weight.T,
        image[0] @ fusion.key.weight.T,
        image[0] @ fusion.value.weight.T,
    )
    expected = text[0] + torch.softmax(queries @ keys.T, dim=-1) @ values @ fusion.out.weight.T
    torch.testing.assert_close(fused[0], expected)
    torch.testing.assert_close(fused[1], text[1])
    weights = [linear.weight for linear in (fusion.query, fusion.key, fusion.value, fusion.out)]
    torch.autograd.gradcheck(lambda *given: fusion(text, image, has_image), (text, image, *weights))


def test_an_untrained_fusion_changes_nothing_and_every_layer_has_one(folder: Path) -> None:
    made = load_guide(composed("task=pkg", "scale=smoke", "data=scienceqa", f"data.path={folder}", "task.vision=tiny"))
    model = made.loaded.model
    fusions = [module for module in model.modules() if isinstance(module, Fusion)]
    assert len(fusions) == model.config.num_hidden_layers == 2
    data, _ = made.encode(rows(folder))
    batch = data.batch(np.arange(4))
    assert batch["has_image"].tolist() == [0, 1, 1, 1]
    blind = dict(batch) | {"has_image": torch.zeros(4)}
    assert torch.equal(losses(model, batch), losses(model, blind))
    losses(model, batch).sum().backward()
    assert all(fusion.out.weight.grad is not None and fusion.out.weight.grad.abs().sum() > 0 for fusion in fusions)


def test_images_change_what_is_written_and_a_row_without_one_is_text_alone(folder: Path) -> None:
    made = guide(folder)
    data, _ = made.encode(rows(folder))
    batch = dict(data.batch(np.arange(4)))
    seen = losses(made.loaded.model, batch)
    blind = losses(made.loaded.model, batch | {"has_image": torch.zeros(4)})
    assert (seen != blind).tolist() == [False, True, True, True]
    other = losses(made.loaded.model, batch | {"image_features": batch["image_features"].flip(0)})
    assert (seen != other).tolist()[1:] == [True, True, True]
    with seeing(made.loaded.model, batch["image_features"], batch["has_image"]):
        pass
    assert torch.equal(losses(made.loaded.model, batch), seen)


def test_private_sums_with_images_equal_the_naive_loop(folder: Path) -> None:
    made = guide(folder, "privacy=dp_sgd")
    model = made.loaded.model
    data, _ = made.encode(rows(folder))
    batch = dict(data.batch(np.arange(4)))
    norms, expected = naive(copy.deepcopy(model), losses, batch, 0.1)
    assert all(total.abs().sum() > 0 for total in expected)
    engine = PrivacyEngine(model, clipping_norm=0.1)
    (statistics,), sums = clipped_sums(engine, losses, batch)
    torch.testing.assert_close(statistics.norms.double(), norms, rtol=1e-5, atol=0)
    scale = max(float(total.abs().max()) for total in expected)
    for total, reference in zip(sums, expected, strict=True):
        torch.testing.assert_close(total.double(), reference, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.medium
@pytest.mark.parametrize("privacy", ["none", "dp_sgd"])
def test_a_guide_that_sees_runs_on_science_questions(
    privacy: str, folder: Path, zygote: Zygote, tmp_path: Path
) -> None:
    words = ("data=scienceqa", f"data.path={folder}", "task.vision=tiny", "task.guides=[none,pkg,gold]")
    small = ("trainer.steps=3", "trainer.batch_size=4", f"runs={tmp_path}", f"privacy={privacy}")
    finished = zygote.run("run", "task=pkg", "scale=smoke", *words, *small)
    assert finished.status == 0, finished.output
    (directory,) = (tmp_path / "pkg").iterdir()
    found = {(row["metric"], row["split"]) for row in files.read_json(directory / "result.json")["rows"]}
    assert ("accuracy", "pkg") in found
    assert (("epsilon", None) in found) == (privacy == "dp_sgd")
    row = tmp_path / "row.jsonl"
    row.write_text(json.dumps({"question": "Which?", "options": ["x", "y"], "image": "3.png"}) + "\n")
    predicted = zygote.run("predict", str(directory), str(row))
    assert predicted.status == 0, predicted.output


@pytest.mark.medium
def test_an_image_that_is_not_there_is_named(folder: Path, zygote: Zygote, tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text((folder / f"{name}.jsonl").read_text())
    words = ("data=scienceqa", f"data.path={tmp_path}", "task.vision=tiny", f"runs={tmp_path / 'runs'}")
    refused = zygote.run("run", "task=pkg", "scale=smoke", *words)
    assert refused.status == 2
    assert "train.jsonl line 2: field 'image': no file" in refused.output
    assert not (tmp_path / "runs").exists()
    nowhere = zygote.run("run", "task=pkg", "scale=smoke", *words, "task.vision=/nowhere", f"data.path={folder}")
    assert nowhere.status == 2
    assert "task.vision: /nowhere is neither `tiny` nor a folder" in nowhere.output
