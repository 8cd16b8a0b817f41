"""The parameters of an ONNX file are counted from its outer structure."""

from __future__ import annotations

from pathlib import Path

import pytest
from privlm.runners.pfedcr.onnx_size import num_parameters

from privlm.errors import PrivLMError

FLOAT, INT64 = 1, 7


def varint(value: int) -> bytes:
    rest = value >> 7
    return bytes([value & 127 | 128]) + varint(rest) if rest else bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(dims: tuple[int, ...], kind: int, *, packed: bool) -> bytes:
    told = field(1, b"".join(map(varint, dims))) if packed else b"".join(field(1, size) for size in dims)
    return told + field(2, kind) + field(8, b"name") + field(9, bytes(3))


def model() -> bytes:
    """A graph with two tables of weights, a shape of whole numbers, a constant in a node, and fields of other kinds."""
    constant = field(1, field(5, field(5, tensor((7,), FLOAT, packed=True))))
    initializers = [
        field(5, tensor(dims, kind, packed=packed))
        for dims, kind, packed in (((300, 2), FLOAT, False), ((1, 3, 2), FLOAT, True), ((50,), INT64, False))
    ]
    others = bytes([10 << 3 | 1]) + bytes(8) + bytes([11 << 3 | 5]) + bytes(4)
    return field(1, 8) + field(7, constant + b"".join(initializers) + others) + field(2, b"maker")


def test_all_floating_weights_are_counted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model())
    assert num_parameters(tmp_path / "a.onnx") == 600 + 6 + 7


@pytest.mark.parametrize("content", [b"", b"no model", model()[:40], b"\xff" * 30])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(PrivLMError, match=r"a.onnx is no ONNX file with weights"):
        num_parameters(tmp_path / "a.onnx")
