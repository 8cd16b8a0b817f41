"""Tensors as bytes between clients and server: safetensors and JSON, never pickle; whole or refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from privlm.errors import UsageError
from privlm.federated.aggregate import Tensors, UnusableReply, difference, norm

_MEGABYTE = 1e6
_ENTRY = "privlm"  # of the metadata of safetensors
_SCALE = ".scale"  # the scale of `name` travels as `name.scale`


def pack(tensors: Tensors, meta: dict[str, Any], *, max_bytes: int | None = None) -> bytes:
    """Tensors and what is said of them as bytes, the same bytes for the same content on any device.

    Tensors that share memory are sent as if they did not. Raises UsageError for more than `max_bytes`.

    Args:
        meta: for JSON; NaN and infinities come back as they are.
    """
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    text = json.dumps(meta, sort_keys=True)
    header = json.dumps({"meta": text, "sha256": _digest(plain, text)})
    data = save(plain, metadata={_ENTRY: header})  # one entry: the order of several is random
    if problem := _excess(len(data), max_bytes):
        raise UsageError(problem)
    return data


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def unpack(data: bytes, *, max_bytes: int | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and meta of `pack`.

    Raises UnusableReply for more than `max_bytes`, and for bytes that `pack` has not written: damaged, cut or foreign.
    """
    if problem := _excess(len(data), max_bytes):
        raise UnusableReply(problem)
    try:
        tensors, metadata = load(data), _metadata(data)
    except Exception as error:  # whatever foreign bytes make their reader raise
        raise UnusableReply(
            f"its {len(data)} bytes are no safetensors: they are damaged or of another program"
        ) from error
    if _ENTRY not in metadata:
        raise UnusableReply("its bytes are safetensors, but were not packed by PrivLM")
    meta = _meta(tensors, metadata[_ENTRY])
    if meta is None:
        raise UnusableReply("its bytes are damaged: their digest is that of something else")
    return tensors, meta


def _metadata(data: bytes) -> dict[str, str]:
    """Of the header of safetensors: its length in 8 bytes, little-endian, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _meta(tensors: Tensors, header: str) -> dict[str, Any] | None:
    """What is said of the tensors; None where the digest in the header is not that of both."""
    try:
        content = json.loads(header)
        meta = json.loads(content["meta"]) if content["sha256"] == _digest(tensors, content["meta"]) else None
    except (ValueError, LookupError, TypeError, AttributeError):  # JSON no more, or other JSON
        return None
    return meta if isinstance(meta, dict) else None


def _digest(tensors: Tensors, text: str) -> str:
    """Names, dtypes, shapes, bytes, and what is said of them; safetensors alone sees no flipped bit."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _excess(num_bytes: int, max_bytes: int | None) -> str | None:
    if max_bytes is None or num_bytes <= max_bytes:
        return None
    return (
        f"an update of {num_bytes / _MEGABYTE:.3g} MB is larger than federated.max_update_mb="
        f"{max_bytes / _MEGABYTE:g}: raise it, or send less (a lower rank, federated.wire=fp16)"
    )


def tensor_bytes(tensors: Tensors) -> int:
    """What the values alone take, without names and header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def compress(tensors: Tensors, kind: str) -> Tensors:
    """Floating tensors in the form that travels; integer and bool ones as they are.

    What is not finite stays so, that the check of updates sees it: under int8 it makes all values of its tensor NaN.

    Args:
        kind: a key of WIRES.

    Raises UsageError for values beyond float16, and where a name is that of another tensor's scale.
    """
    sent: Tensors = {}
    for name, tensor in tensors.items():
        sent |= WIRES[kind](name, tensor.detach()) if tensor.is_floating_point() else {name: tensor}
        if kind == "int8" and name + _SCALE in tensors:
            raise UsageError(
                f"federated.wire=int8 sends a scale as {name + _SCALE}, which is a tensor; choose fp16 or fp32"
            )
    return sent


def _whole(name: str, x: Tensor) -> Tensors:
    return {name: x}


def _half(name: str, x: Tensor) -> Tensors:
    half = x.half()
    if bool((half.isinf() & x.isfinite()).any()):
        raise UsageError(f"federated.wire=fp16: {name} holds values beyond 65504; choose int8 or fp32")
    return {name: half}


def _eighth(name: str, x: Tensor) -> Tensors:
    """Whole numbers from -127 to 127 times a scale: the error is half a scale at most."""
    largest = x.abs().max() if x.numel() else torch.zeros(())
    scale = (largest.double() / 127).float()
    levels = (x.double() / scale.double()).nan_to_num(0.0).round().clamp(-127, 127)  # a scale of NaN or 0: any
    return {name: levels.to(torch.int8), name + _SCALE: scale}


WIRES: dict[str, Callable[[str, Tensor], Tensors]] = {"fp32": _whole, "fp16": _half, "int8": _eighth}
"""federated.wire -> what is sent for one floating tensor. fp32 sends the dtype that the tensor has."""


def expand(tensors: Tensors, kind: str, like: Tensors | None = None) -> Tensors:
    """The tensors of which `compress` made these.

    like: tensors of the same names, whose dtypes are taken; None for float32.

    Tensors that do not look compressed come back as they are, for `fault_of` to judge.
    """
    if kind == "fp32":
        return dict(tensors)
    like = like or {}
    restored: Tensors = {}
    for name, tensor in tensors.items():
        dtype = like[name].dtype if name in like else torch.float32
        if kind == "fp16" and tensor.dtype == torch.float16:
            restored[name] = tensor.to(dtype)
        elif kind == "int8" and _is_scaled(name, tensors):
            restored[name] = (tensor.double() * tensors[name + _SCALE].double()).to(dtype)
        elif not (kind == "int8" and _is_scaled(name.removesuffix(_SCALE), tensors)):
            restored[name] = tensor
    return restored


def _is_scaled(name: str, tensors: Tensors) -> bool:
    scale = tensors.get(name + _SCALE)
    if scale is None or name not in tensors:
        return False
    return tensors[name].dtype == torch.int8 and scale.dtype == torch.float32 and scale.dim() == 0


def wire_error(before: Tensors, after: Tensors) -> float:
    """What the wire changed of the floating tensors, relative to their norm; infinite where zeros came as others."""
    changed, length = norm(difference(after, before)), norm(before)
    return changed / length if length else (0.0 if not changed else float("inf"))
