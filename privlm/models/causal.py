"""A causal language model and its tokenizer: from files or at random, with a peft adapter on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer
from privlm.models.gguf import dequantized
from privlm.models.loading import NO_CODE, NO_PICKLE, quiet, readable, refuse_adapter_code, refuse_own_code, require_fit
from privlm.models.locate import ModelFiles, require_files
from privlm.models.quantized import loading_options
from privlm.models.scratch import from_scratch, shape_config

if TYPE_CHECKING:
    from peft import PeftModel

    CausalLM = PreTrainedModel | PeftModel


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """Raises UsageError where its files cannot be read."""
    if files.directory is None:
        return byte_tokenizer()
    directory = model_directory(files)
    with readable(directory), quiet():
        return AutoTokenizer.from_pretrained(directory, **NO_CODE)


def build_causal_lm(
    files: ModelFiles,
    shape: Mapping[str, Any] | None,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    seed: int = 0,
    group: str = "llm",
    quantization: str | None = None,
) -> CausalLM:
    """The model in evaluation mode.

    Args:
        files: complete (a hub model is downloaded already).
        shape: of a random model, as in a config.json.
        device: a torch device, or `balanced` over all GPUs.
        seed: decides the weights of a random model.
        group: of the configuration, for messages.
        quantization: nf4 or int8 (privlm.models.quantized), of files alone.

    Raises:
        UsageError: a file is missing, damaged or half written, or there is no such device or shape.
    """
    if files.directory is None:
        assert shape is not None
        model = random_causal_lm(shape, seed, field=f"{group}.random")
        for parameter in model.parameters():  # buffers stay float32, as in loaded models: rotary frequencies among them
            parameter.data = parameter.data.to(dtype)
        return _move(model, device)
    directory = model_directory(files)
    require_files(directory, group)
    placement: dict[str, Any] = {"device_map": "balanced"} if device == "balanced" else {}
    placement |= loading_options(quantization, dtype, device)
    auto: Any = AutoModelForCausalLM
    with readable(directory), quiet():
        model, report = auto.from_pretrained(directory, dtype=dtype, output_loading_info=True, **placement, **NO_PICKLE)
    require_fit(report, directory)
    return (model if placement else _move(model, device)).eval()


def build_encoder(files: ModelFiles, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """An encoder for its hidden states alone, in evaluation mode; arguments and errors as of `build_causal_lm`."""
    directory = model_directory(files)
    require_files(directory, "llm")
    with readable(directory), quiet():
        options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
        model, report = AutoModel.from_pretrained(directory, **options, **NO_PICKLE)
    require_fit(report, directory, left_out="pooler.")
    return _move(model, device).eval()


def random_causal_lm(shape: Mapping[str, Any], seed: int = 0, field: str = "model.random") -> PreTrainedModel:
    """A model of this shape over the vocabulary of `byte_tokenizer`; see `from_scratch`."""
    return from_scratch(AutoModelForCausalLM, shape_config(shape, byte_tokenizer(), field), seed, field)


def context_length(files: ModelFiles, shape: Mapping[str, Any] | None) -> int | None:
    """Tokens that the model can read, None where its configuration sets no limit."""
    if files.directory is None:
        assert shape is not None
        config = shape_config(shape, byte_tokenizer())
    else:
        directory = model_directory(files)
        with readable(directory):
            config = AutoConfig.from_pretrained(directory, **NO_CODE)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def apply_peft(model: Any, adapter: Path) -> PeftModel:
    """The model with a saved peft adapter, which must be one of this base.

    Raises:
        UsageError: the adapter is damaged, of an unknown kind, or made for other weights.
    """
    from peft import PeftModel  # takes seconds

    refuse_adapter_code(adapter)
    with readable(adapter), quiet():
        adapted = PeftModel.from_pretrained(model, str(adapter))
        report = adapted.load_adapter(str(adapter), "default")  # again: the first time tells nothing
    if report.unexpected_keys or report.missing_keys:
        first = sorted([*report.unexpected_keys, *report.missing_keys])[0]
        raise UsageError(f"llm.adapter: {adapter} was made for other weights (first that does not fit: {first})")
    return adapted.eval()


def model_directory(files: ModelFiles) -> Path:
    """Folder with config.json, weights and tokenizer files."""
    assert files.directory is not None
    if files.gguf_file:
        return dequantized(files)
    refuse_own_code(files.directory)
    return files.directory


def _move(model: Any, device: str) -> Any:
    try:
        return model.to("cuda:0" if device == "balanced" else device)
    except (RuntimeError, AssertionError) as error:  # no such device, or no room on it; AssertionError: no CUDA
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"llm.device={device}: {first_line}") from error
