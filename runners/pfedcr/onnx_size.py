"""How many parameters an ONNX file has, read from its outer structure alone (onnx.proto); the package onnx, which would
say it, is needed for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

from privlm.errors import PrivLMError

WEIGHTS = ((7, 5), (7, 1, 5, 5))
"""Fields from ModelProto to a TensorProto: graph.initializer, and graph.node.attribute.t of constants."""

DIMS, DATA_TYPE = 1, 2  # fields of TensorProto
FLOATING = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
FIXED_BYTES = {1: 8, 5: 4}  # wire types of protobuf, beside 0 (varint) and 2 (bytes)

Value = int | memoryview


def num_parameters(path: Path) -> int:
    """Floating-point numbers in the weights of an ONNX file. Raises PrivLMError for another file."""
    try:
        tensors = [tensor for way in WEIGHTS for tensor in _below(memoryview(path.read_bytes()), way)]
        found = sum(map(_size, tensors))
    except (IndexError, KeyError, TypeError):
        found = 0
    if not found:
        raise PrivLMError(f"{path} is no ONNX file with weights")
    return found


def _below(message: memoryview, way: tuple[int, ...]) -> Iterator[memoryview]:
    """All messages that are reached by a way of field numbers."""
    if not way:
        yield message
        return
    for field, value in _fields(message):
        if field == way[0] and isinstance(value, memoryview):
            yield from _below(value, way[1:])


def _size(tensor: memoryview) -> int:
    """Of a TensorProto; 0 for whole numbers, which are shapes and indices."""
    dims, kind = [], None
    for field, value in _fields(tensor):
        if field == DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif field == DATA_TYPE:
            kind = value
    return prod(dims) if kind in FLOATING else 0


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Field number and value of each entry of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else (FIXED_BYTES[kind], at)
        if at + size > len(message):
            raise IndexError("a field that does not end")
        yield key >> 3, message[at : at + size]
        at += size


def _packed(values: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(values):
        value, at = _varint(values, at)
        found.append(value)
    return found


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, least significant first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
