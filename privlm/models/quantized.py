"""Frozen weights in 4 or 8 bits, by bitsandbytes: what trains beside them stays as it is (QLoRA, arXiv 2305.14314).

Layers but the output layer are packed while they are loaded; computed is in the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from privlm.errors import UsageError
from privlm.models.schema import CausalLMConfig
from privlm.schema import require_packages

if TYPE_CHECKING:
    import torch

BESIDE = ("none", "lora", "lora_emnlp", "ia3", "prefix", "prompt")
"""Adapters that leave the weights below them as they are."""


def require_quantizable(model: CausalLMConfig, adapter: str) -> None:
    """Raises UsageError where model.quantization is asked for and cannot be."""
    name = getattr(model, "quantization", None)
    if name is None:
        return
    if model.random is not None and not model.path:
        raise UsageError(f"model.quantization={name}: weights at random are not packed; set model.quantization=null")
    if adapter not in BESIDE:
        raise UsageError(
            f"model.quantization={name}: adapter={adapter} does not leave packed weights as they are; choose one of "
            f"{', '.join(BESIDE)}"
        )
    require_packages(f"model.quantization={name}", "bitsandbytes", extra="quantized")
    if name == "nf4" and not _has_cuda():
        raise UsageError(
            "model.quantization=nf4: on a CPU bitsandbytes rounds packed weights anew between training and evaluation, "
            "so that what was trained could not be kept as it is; choose int8, or a machine with a GPU"
        )


def loading_options(name: str | None, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """For from_pretrained of transformers; none without quantisation."""
    return {} if name is None else {"quantization_config": CONFIGS[name](dtype), "device_map": {"": device}}


def shape_of(weight: Any) -> Any:
    """The sizes of a weight [outputs, inputs], packed or not: two values of 4 bits lie in one byte."""
    packed = getattr(weight, "quant_state", None)
    return tuple(weight.shape if packed is None else packed.shape)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _int8(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


CONFIGS: dict[str, Callable[[torch.dtype], Any]] = {"nf4": _nf4, "int8": _int8}
"""model.quantization -> the settings of bitsandbytes."""
