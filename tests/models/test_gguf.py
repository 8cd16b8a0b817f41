"""The cache of dequantised weights: made once, whole or not at all."""

from pathlib import Path

import pytest

from privlm.errors import UsageError
from privlm.models import gguf
from privlm.models.gguf import dequantized
from privlm.models.locate import ModelFiles


@pytest.fixture
def quantized(tmp_path, monkeypatch) -> ModelFiles:
    monkeypatch.setenv("PRIVLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights.gguf").write_bytes(b"GGUF damaged")
    return ModelFiles("path", tmp_path, "sha256:" + "0" * 64, "weights.gguf")


@pytest.fixture
def unpacked(monkeypatch) -> list[Path]:
    """Folders that were filled, by something that needs no real weights."""
    folders = []

    def unpack(directory: Path, gguf_file: str, folder: Path) -> None:
        folders.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text("{}")

    monkeypatch.setattr(gguf, "_unpack", unpack)
    return folders


@pytest.mark.torch_free
def test_weights_are_unpacked_once(quantized, unpacked, tmp_path):
    folder = dequantized(quantized)
    assert folder.is_relative_to(tmp_path / "cache")
    assert dequantized(quantized) == folder
    assert unpacked == [folder]
    (folder / "model.safetensors").unlink()
    assert dequantized(quantized) == folder
    assert unpacked == [folder, folder]


@pytest.mark.torch_free
def test_cache_that_cannot_be_written_is_one_message(quantized, unpacked, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match=r"cannot be written \(.*\); set PRIVLM_CACHE"):
        dequantized(quantized)


def test_damaged_file_leaves_nothing_behind(quantized, tmp_path):
    with pytest.raises(UsageError, match=r"weights\.gguf cannot be loaded"):
        dequantized(quantized)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
