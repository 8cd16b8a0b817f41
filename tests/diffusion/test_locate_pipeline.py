"""Where a text-to-image pipeline is found, and what is said when it is not there or not whole; nothing is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from privlm import hub
from privlm.config import PipelineConfig, defaults
from privlm.diffusion import locate
from privlm.diffusion.locate import contents, inputs, locate_pipeline
from privlm.diffusion.schema import FAMILIES, is_pipeline
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.schema import problems

pytestmark = pytest.mark.torch_free

PARTS = {
    "tokenizer": ("transformers", "CLIPTokenizer", ["tokenizer.json"]),
    "text_encoder": ("transformers", "CLIPTextModel", ["config.json", "model.safetensors"]),
    "unet": ("diffusers", "UNet2DConditionModel", ["config.json", "diffusion_pytorch_model.safetensors"]),
    "vae": ("diffusers", "AutoencoderKL", ["config.json", "diffusion_pytorch_model.safetensors"]),
    "scheduler": ("diffusers", "DDIMScheduler", ["scheduler_config.json"]),
}
SDXL_PARTS = {
    "tokenizer_2": PARTS["tokenizer"],
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", ["config.json", "model.safetensors"]),
}
LARGE = ("sd14", "sd15", "sd21", "sdxl")


def put(folder: Path, kind: str = "StableDiffusionPipeline", **unet: Any) -> Path:
    """A folder that looks like a pipeline to whoever loads nothing."""
    parts = PARTS | (SDXL_PARTS if "XL" in kind else {})
    index = {"_class_name": kind, "safety_checker": [None, None]}
    for part, (library, name, names) in parts.items():
        index[part] = [library, name]
        (folder / part).mkdir(parents=True)
        for file in names:
            content = json.dumps(unet if part == "unet" else {}) if file.endswith("json") else f"weights of {part}"
            (folder / part / file).write_text(content)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config(path: Path | None = None, name: str = "sd15", **changes: Any) -> PipelineConfig:
    """Of another folder than the package's, whose files the YAML of tiny_sd pins."""
    made = defaults(PipelineConfig, "model", name, path=None if path is None else str(path), **changes)
    if "sha256" in changes or path is not None:
        made.sha256 = changes.get("sha256", {})
    return made


def refusal(path: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as error:
        locate_pipeline(config(path, **changes))
    return str(error.value)


@pytest.mark.parametrize("name", ["tiny_sd", *LARGE])
def test_every_pipeline_has_all_its_settings_and_is_known_as_one(name: str) -> None:
    model = config(name=name)
    assert model.name == name
    assert is_pipeline(model)
    assert model.package or model.hub_id
    assert model.family in FAMILIES
    assert problems(OmegaConf.structured(model), None) == []


@pytest.mark.parametrize("name", LARGE)
def test_the_repository_of_a_name_is_what_it_stands_for(name: str) -> None:
    model = config(name=name)
    assert f"hub:{model.hub_id}" in (model.known or [])


def test_a_text_model_is_no_pipeline() -> None:
    text: Any = OmegaConf.create({"name": "roberta", "path": None})
    assert not is_pipeline(text)
    with pytest.raises(UsageError, match="no text-to-image pipeline; choose model=tiny_sd"):
        locate_pipeline(text)


def test_a_package_beside_a_repository_is_refused_as_unread() -> None:
    model = config(name="tiny_sd", hub_id="someone/something")
    assert "leaves model.hub_id=someone/something unread" in problems(OmegaConf.structured(model), None, "model.")[0]


def test_the_same_content_has_one_fingerprint_wherever_it_lies(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a"), put(tmp_path / "b" / "deeper")
    assert locate_pipeline(config(first)).fingerprint == locate_pipeline(config(second)).fingerprint
    assert len(locate_pipeline(config(first)).digest) == 64


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json",
                                  "scheduler/scheduler_config.json", "vae/config.json"])  # fmt: skip
def test_whatever_decides_the_images_is_in_the_fingerprint(tmp_path: Path, file: str) -> None:
    folder = put(tmp_path / "a")
    before = locate_pipeline(config(folder))
    (folder / file).write_text('{"changed": true}')
    after = locate_pipeline(config(folder))
    assert before.fingerprint != after.fingerprint
    assert before.digest != after.digest


def test_own_weights_are_named_after_their_folder(tmp_path: Path) -> None:
    found = contents(config(put(tmp_path / "mine")))["model"]
    assert (found.name, found.known) == ("mine", False)


def test_family_is_read_from_class_and_projection(tmp_path: Path) -> None:
    from privlm.diffusion.pipeline_folder import family_of

    assert family_of(put(tmp_path / "1")) == "sd1"
    assert family_of(put(tmp_path / "2", use_linear_projection=True)) == "sd2"
    assert family_of(put(tmp_path / "xl", "StableDiffusionXLPipeline", use_linear_projection=True)) == "sdxl"
    assert "model.family=sdxl" in refusal(tmp_path / "1", family="sdxl")


def test_a_folder_without_index_and_a_single_file_are_refused(tmp_path: Path) -> None:
    assert "holds no model_index.json" in refusal(tmp_path)
    (tmp_path / "v1-5.safetensors").write_text("weights")
    assert "save_pretrained" in refusal(tmp_path / "v1-5.safetensors")


def test_an_index_that_is_not_json_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "a")
    (folder / "model_index.json").write_text("{")
    assert "model_index.json: not JSON" in refusal(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named_as_folder_and_as_entry(tmp_path: Path, part: str) -> None:
    folder = put(tmp_path / "a")
    shutil.rmtree(folder / part)
    assert f"holds no folder {part}" in refusal(folder)
    change_index(folder, **{part: [None, None]})
    assert f"names no {part}" in refusal(folder)


def test_parts_of_sdxl_are_asked_for_as_well(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", "StableDiffusionXLPipeline")
    assert locate_pipeline(config(folder)).kind == "path"
    shutil.rmtree(folder / "text_encoder_2")
    assert "no folder text_encoder_2" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("unet", ["diffusers", "UNet2DModel"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("unet", ["their_code", "TheirUNet"]),
        ("vae", ["their_code", "TheirVAE"]),
    ],
)
def test_a_part_of_another_class_is_named(tmp_path: Path, part: str, named: list[str]) -> None:
    folder = put(tmp_path / "a")
    change_index(folder, **{part: named})
    assert f"{part} is a {named[1]}" in refusal(folder)


def test_a_pipeline_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "a")
    change_index(folder, _class_name="FluxPipeline")
    assert "FluxPipeline is not a pipeline that is trained here" in refusal(folder)


def test_pickled_weights_alone_are_refused_unless_they_are_trusted(tmp_path: Path) -> None:
    folder = put(tmp_path / "a")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "model.allow_pickle=true" in refusal(folder)
    assert locate_pipeline(config(folder, allow_pickle=True)).kind == "path"


def test_absent_weights_and_an_absent_variant_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "a")
    assert "no weights of variant fp16" in refusal(folder, variant="fp16")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert str(folder / "vae") in refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "a")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    weights.rename(weights.with_name(shard))
    other = shard.replace("00001-", "00002-")
    index = {"weight_map": {"conv_in.weight": shard, "conv_out.weight": other}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert f"holds no {other}" in refusal(folder)


def test_another_vae_is_content_of_its_own(tmp_path: Path) -> None:
    folder, other = put(tmp_path / "a"), put(tmp_path / "b") / "vae"
    plain = inputs(config(folder))
    assert set(plain) == {"model"}
    (other / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 1.0}')
    found = inputs(config(folder, vae_path=str(other)))
    assert found["model"] == plain["model"]
    assert found["model.vae_path"].startswith("sha256:")
    assert locate_pipeline(config(folder)).digest != locate_pipeline(config(folder, vae_path=str(other))).digest
    assert "give the folder of an AutoencoderKL" in refusal(folder, vae_path=str(tmp_path))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = put(tmp_path / "pipeline_of_somebody" / "embedded")
    (folder.parent / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def packaged(folder: Path, **changes: Any) -> PipelineConfig:
    file = "unet/diffusion_pytorch_model.safetensors"
    settings = {"package": "pipeline_of_somebody", "package_folder": "embedded"}
    return config(name="tiny_sd", **settings, sha256={file: sha256_file(folder / file)}, **changes)


def test_a_package_is_found_without_importing_it_and_is_what_its_name_says(package: Path) -> None:
    model = packaged(package)
    found = locate_pipeline(model)
    assert (found.kind, found.directory) == ("package", package)
    content = contents(model)["model"]
    assert (content.name, content.known) == ("tiny_sd", True)


def test_a_changed_file_of_a_package_is_refused(package: Path) -> None:
    model = packaged(package)
    (package / "unet" / "diffusion_pytorch_model.safetensors").write_text("other weights")
    with pytest.raises(UsageError, match=r"diffusion_pytorch_model\.safetensors .*model\.sha256"):
        locate_pipeline(model)


def test_pins_of_a_folder_are_of_all_that_is_read_and_hold(package: Path) -> None:
    pinned = locate.pins(package)
    assert {"model_index.json", "unet/config.json", "vae/diffusion_pytorch_model.safetensors"} <= set(pinned)
    model = config(name="tiny_sd", package="pipeline_of_somebody", package_folder="embedded", sha256=pinned)
    assert locate_pipeline(model).kind == "package"
    (package / "scheduler" / "scheduler_config.json").write_text("{ }")
    with pytest.raises(UsageError, match=r"scheduler_config\.json .*model\.sha256"):
        locate_pipeline(model)


def test_a_package_that_is_absent_is_named() -> None:
    with pytest.raises(UsageError, match="package no_such_package is not installed"):
        locate_pipeline(config(name="tiny_sd", package="no_such_package"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put_snapshot(cache: Path, hub_id: str, branch: str = "main") -> Path:
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / branch).write_text(COMMIT)
    return put(repository / "snapshots" / COMMIT)


def test_offline_a_repository_is_refused_with_its_name_and_the_local_way(cache: Path) -> None:
    with pytest.raises(UsageError) as error:
        inputs(config())
    for word in ("stable-diffusion-v1-5/stable-diffusion-v1-5", "HF_HUB_OFFLINE", "model.path=FOLDER", "model=tiny_sd"):
        assert word in str(error.value)


def test_a_whole_snapshot_is_taken_offline_and_one_without_a_part_is_not(cache: Path) -> None:
    model = config()
    assert model.hub_id is not None
    snapshot = put_snapshot(cache, model.hub_id)
    found = locate_pipeline(model)
    assert found.directory == snapshot
    assert found.fingerprint == f"hub:{model.hub_id}@{COMMIT}"
    assert contents(model)["model"].known
    shutil.rmtree(snapshot / "vae")
    with pytest.raises(UsageError, match="not whole in the hub cache"):
        locate_pipeline(model)


def test_a_revision_is_looked_for_by_its_name(cache: Path) -> None:
    model = config(revision="fp16")
    assert model.hub_id is not None
    with pytest.raises(UsageError, match="at revision fp16"):
        locate_pipeline(model)
    put_snapshot(cache, model.hub_id, branch="fp16")
    assert locate_pipeline(model).fingerprint.endswith(COMMIT)


def test_a_download_takes_one_form_of_the_weights(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "download", lambda directory, repository, kind, patterns: asked.extend(patterns))
    model = config(variant="fp16")
    found = locate.PipelineFiles("hub", put_snapshot(cache, str(model.hub_id)), "hub:x@y", "x")
    with pytest.raises(UsageError, match="variant fp16"):  # what was downloaded is looked at
        locate.complete(found, model)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked
    assert not [pattern for pattern in asked if "bin" in pattern or pattern.endswith("_model.safetensors")]


@pytest.mark.medium
def test_finding_imports_no_torch() -> None:
    code = "import sys, privlm.config, privlm.diffusion.locate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
