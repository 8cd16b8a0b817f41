"""Task sur_adapter from the command line, before a tiny random pipeline: stages, kills, methods, privacy, the verbs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusion.tiny_pipelines import pipeline_folder
from PIL import Image
from support.zygote import Finished, Zygote

from privlm import files
from privlm.cli import main

pytestmark = pytest.mark.medium

SHORT = (
    "data.num_train=12", "data.num_validation=4", "data.num_test=6", "trainer.steps=4", "trainer.batch_size=4",
    "trainer.micro_batch_size=4", "trainer.checkpoint_every=2", "task.sampling.steps=2", "task.sampling.batch_size=4",
    "task.sampling.size=32", "task.judging.num_images=6",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 channels of text, which 4 heads divide."""
    return pipeline_folder(tmp_path_factory.mktemp("base") / "tiny")


def run(zygote: Zygote, base: Path, runs: Path, *words: str, fault: tuple[str, int] | None = None) -> Finished:
    own = (f"model.path={base}", f"runs={runs}", *SHORT, *words)
    return zygote.run("run", "task=sur_adapter", "scale=smoke", *own, fault=fault)


def only_run(runs: Path) -> Path:
    (directory,) = (runs / "sur_adapter").iterdir()
    return directory


def result(runs: Path) -> dict[str, Any]:
    found = files.read_json(only_run(runs) / "result.json")
    assert found is not None
    return found


def rows(runs: Path) -> dict[tuple[str, str | None], Any]:
    return {(row["metric"], row["split"]): row["value"] for row in result(runs)["rows"]}


def trained(runs: Path) -> Path:
    return only_run(runs) / "stages" / "train" / "model"


@pytest.fixture(scope="module")
def whole(zygote: Zygote, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    runs = tmp_path_factory.mktemp("whole")
    finished = run(zygote, base, runs)
    assert finished.status == 0, finished.output
    return finished, runs


def test_a_run_goes_from_the_base_to_the_adapter(whole: tuple[Finished, Path]) -> None:
    _, runs = whole
    found, directory = rows(runs), only_run(runs)
    for split in ("base_narrative", "base_keyword", "narrative", "keyword"):
        assert 0 <= found["acc_all", split] <= 1
        assert found["images", split] == 6
        assert ("kid[shapes_cnn]", split) in found
    assert {("win_rate_over_base", "narrative"), ("win_rate_over_keyword", "base_narrative")} <= set(found)
    assert 0 < found["trainable_parameters", None] < found["parameters", None]
    assert (directory / "pictures" / "prompts.png").is_file()
    notes = " ".join(result(runs)["notes"])
    assert "clip_score: n/a (no CLIP model is configured)" in notes
    assert "gap_closed: n/a" in notes
    assert not (directory / "stages" / "features").exists()


def test_what_is_cut_of_prompts_is_counted_and_not_written_out(whole: tuple[Finished, Path]) -> None:
    finished, runs = whole
    assert "22 of 22 prompts by keywords cut to 24 tokens" in result(runs)["notes"]
    assert "best quality" not in finished.output


def test_the_parts_of_the_loss_are_logged_apart(whole: tuple[Finished, Path]) -> None:
    logged = files.read_json_lines(only_run(whole[1]) / "metrics.jsonl")
    parts = {"loss", "loss_diff", "loss_align", "loss_llm"}
    for split in ("train", "validation"):
        assert parts <= {row["name"] for row in logged if row["split"] == split and row["stage"] == "train"}


@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_run_killed_anywhere_ends_equal(
    share: float, whole: tuple[Finished, Path], zygote: Zygote, base: Path, tmp_path: Path
) -> None:
    """D5."""
    finished, runs = whole
    killed = run(zygote, base, tmp_path, fault=("kill", int(share * finished.writes)))
    assert killed.status == -9, killed.output
    again = run(zygote, base, tmp_path)
    assert again.status == 0, again.output
    assert files.sha256_file(trained(tmp_path) / "adapter.safetensors") == files.sha256_file(
        trained(runs) / "adapter.safetensors"
    )
    assert rows(tmp_path) == rows(runs)


def test_two_processes_learn_what_one_does(
    whole: tuple[Finished, Path], zygote: Zygote, base: Path, tmp_path: Path
) -> None:
    """D3 and D8: nobody waits for the others in vain, and no parameter is without its part."""
    finished = run(zygote, base, tmp_path, "trainer=ddp", "trainer.processes=2", "trainer.micro_batch_size=2")
    assert finished.status == 0, finished.output
    one, two = rows(whole[1]), rows(tmp_path)
    assert two["images", "narrative"] == 6
    assert two["trainable_parameters", None] == one["trainable_parameters", None]
    logged = [
        [row["value"] for row in files.read_json_lines(only_run(runs) / "metrics.jsonl") if row["name"] == "loss_diff"]
        for runs in (whole[1], tmp_path)
    ]
    np.testing.assert_allclose(*logged, rtol=1e-2)  # but for dropout


@pytest.mark.parametrize(
    "words",
    [
        ("task.method=llm_only", "task.features.backend=hash", "adapter.compat=released"),
        ("task.method=align_only", "privacy=dp_sgd", "privacy.delta=1e-2"),
        ("task.method=finetune", "adapter=lora", "privacy=dp_sgd", "privacy.delta=1e-2"),
    ],
    ids=" ".join,
)
def test_every_method_runs_to_its_end(words: tuple[str, ...], zygote: Zygote, base: Path, tmp_path: Path) -> None:
    finished = run(zygote, base, tmp_path, *words)
    assert finished.status == 0, finished.output
    found = rows(tmp_path)
    assert ("acc_all", "narrative") in found
    if "privacy=dp_sgd" in words:
        assert found["epsilon", None] <= 8
    if "adapter=lora" in words:
        assert (trained(tmp_path) / "pytorch_lora_weights.safetensors").is_file()


def test_without_eta_the_images_are_those_of_the_base(
    whole: tuple[Finished, Path], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("prompt=pair navy disc", "prompt=red, circle, two")
    for name, eta in {"plain": 0, "adapted": 1, "again": 1}.items():
        words = (f"eta={eta}", f"adapter={only_run(whole[1])}", f"out={tmp_path / name}", "num_images=2", "seed=5")
        assert main(["sur_adapter", "generate", *prompts, *words]) == 0
    made = {name: sorted((tmp_path / name).glob("*.png")) for name in ("plain", "adapted", "again")}
    pixels = {name: [np.asarray(Image.open(path)) for path in paths] for name, paths in made.items()}
    assert [path.name for path in made["plain"]][:3] == [
        "0000-pair_navy_disc.png", "0001-pair_navy_disc.png", "0002-red_circle_two.png",
    ]  # fmt: skip
    assert all(np.array_equal(*pair) for pair in zip(pixels["adapted"], pixels["again"], strict=True))
    assert not any(np.array_equal(*pair) for pair in zip(pixels["adapted"], pixels["plain"], strict=True))
    told = files.read_json(tmp_path / "plain" / "images.json")
    assert [row["seed"] for row in told["images"]] == [5, 6, 5, 6]
    assert told["eta"] == 0.0
    drawn = by_hand(base, ["pair navy disc"] * 2, [5, 6])
    for found, expected in zip(pixels["plain"][:2], drawn, strict=True):  # drawn in batches of another size
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def by_hand(base: Path, prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
    """By the pipeline of diffusers alone."""
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    made = pipe(prompts, generator=generators, num_inference_steps=2, guidance_scale=3.0, height=32, width=32)
    return [np.asarray(image) for image in made.images]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prompt=a",), "adapter: name a finished run"),
        (("adapter=RUN",), "prompt: say what is to be drawn"),
        (("prompt=a", "adapter=RUN", "eta=2"), "eta must be at least 0 and at most 1"),
        (("prompt=a", "adapter=RUN", "etta=1"), "Key 'etta' not in 'Asked'"),
        (("prompt=a", "adapter=RUN", "eta"), "'eta' is no field=value"),
        (("prompt=a", "adapter=nowhere"), "nowhere is neither a run with a SUR adapter nor the folder of one"),
        (("prompt=a", "adapter=RUN", "model.path=OTHER"), "trained before another model"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    words: tuple[str, ...], message: str, whole: tuple[Finished, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "model.path=OTHER" in words:
        pipeline_folder(tmp_path / "other", seed=1)
    known = {"adapter=RUN": f"adapter={only_run(whole[1])}", "model.path=OTHER": f"model.path={tmp_path / 'other'}"}
    words = tuple(known.get(word, word) for word in words)
    assert main(["sur_adapter", "generate", *words, f"out={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_finished_run_draws_is_measured_and_exported(
    whole: tuple[Finished, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(only_run(whole[1]))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "pair navy disc", "seed": 3}\n{"text": "lone plum cone"}\n')
    assert main(["predict", directory, str(tmp_path / "rows.jsonl")]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["seed"] == 3
    image = Image.open(io.BytesIO(base64.b64decode(answers[1]["image"].partition(",")[2])))
    assert image.size == (32, 32)
    assert main(["export", directory, str(tmp_path / "exported")]) == 0
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "README.md", "adapter.json", "adapter.pt2",
    ]  # fmt: skip
