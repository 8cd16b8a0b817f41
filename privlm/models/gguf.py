"""Quantised GGUF weights as an ordinary model folder, dequantised once into a cache.

Left packed, such a model takes about a minute to load each time and cannot be saved.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
from functools import lru_cache
from pathlib import Path

from privlm import files
from privlm.errors import UsageError
from privlm.models.locate import ModelFiles, missing_files

logger = logging.getLogger("privlm")


def dequantized_folder(model: ModelFiles) -> Path:
    """Where `dequantized` keeps the weights of a GGUF file, there or not yet."""
    return files.cache_folder() / "gguf" / model.fingerprint.removeprefix("sha256:")[:32]


def dequantized(model: ModelFiles) -> Path:
    """Folder with the weights of a GGUF file and its tokenizer; float32 holds every dequantised value exactly.

    Made at the first call (about a minute, 4 bytes a parameter), complete or not at all; processes wait for each other.

    Raises:
        UsageError: the file cannot be read, or the cache not be written.
    """
    assert model.directory is not None
    assert model.gguf_file is not None
    folder = dequantized_folder(model)
    cache = folder.parent
    if _is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{folder.name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(folder):
                logger.info("unpacking %s into %s, once: about a minute", model.gguf_file, folder)
                _unpack(model.directory, model.gguf_file, folder)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error}); set PRIVLM_CACHE to another folder") from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the unpacked weights are there and, by their digests, what was written; hashed once in a process."""
    if missing_files(folder):
        _damages.cache_clear()
        return False
    if damaged := _damages(folder):
        logger.warning("%s is damaged (%s: not what was written)", folder, ", ".join(damaged))
        _damages.cache_clear()
    return not damaged


@lru_cache
def _damages(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(files.damaged_files(folder))
    except FileNotFoundError:
        logger.warning("%s was unpacked by an older version, without digests: remove it to have it made anew", folder)
        return ()
    except ValueError:
        return (files.DIGESTS,)


def _unpack(directory: Path, gguf_file: str, folder: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from privlm.models.loading import NO_CODE, NO_PICKLE, quiet, readable

    # The converter's progress bar knows no switch.
    with readable(directory / gguf_file), quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=gguf_file, **NO_CODE)
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            gguf_file=gguf_file,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **NO_PICKLE,
        )

    def fill(temporary: Path) -> None:
        try:
            with quiet():
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
            files.write_digests(temporary)
        except SafetensorError as error:  # so it calls a full disk
            raise OSError(str(error)) from error

    files.write_directory(folder, fill)
