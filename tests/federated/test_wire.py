"""Bytes between clients and server: what comes out is what went in, or is refused by name."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from privlm.errors import UsageError
from privlm.federated.aggregate import Tensors, UnusableReply, fault_of
from privlm.federated.wire import WIRES, compress, expand, pack, tensor_bytes, unpack, wire_error
from privlm.privacy import keyed_random

few = settings(max_examples=150, deadline=None, derandomize=True)
META = {"client": "site 10", "round": 3, "num_examples": 200, "loss": 0.25}


def some() -> Tensors:
    rng = keyed_random.generator("test", "wire")
    return {
        "w": torch.from_numpy(rng.normal(size=(6, 4))).float(),
        "half": torch.from_numpy(rng.normal(size=3)).bfloat16(),
        "num_batches_tracked": torch.tensor(12),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
    }


PACKED = pack(some(), META)


def test_tensors_and_meta_come_back() -> None:
    tensors, meta = unpack(PACKED)
    assert meta == META
    assert fault_of(tensors, some()) is None
    for name, tensor in some().items():
        assert torch.equal(tensors[name], tensor)
    assert pack(dict(reversed(some().items())), META) == PACKED


def test_what_is_not_finite_comes_back_in_tensors_and_in_meta() -> None:
    tensors, meta = unpack(pack({"w": torch.tensor([math.nan, -math.inf, -0.0])}, {"loss": math.nan}))
    assert tensors["w"].isnan().tolist() == [True, False, False]
    assert (tensors["w"][1].item(), math.copysign(1, tensors["w"][2].item())) == (-math.inf, -1.0)
    assert math.isnan(meta["loss"])


def test_tied_tensors_views_and_parameters_are_packed_as_their_values() -> None:
    layer = nn.Linear(3, 3)
    tied = {
        "a": layer.weight,
        "b": layer.weight,
        "c": layer.weight.T,
        "d": torch.ones(1).expand(4),
        "e": layer.weight[1],
    }
    tensors, _ = unpack(pack(tied, {}))
    for name, tensor in tied.items():
        assert torch.equal(tensors[name], tensor.detach())


@few
@given(place=st.integers(0, len(PACKED) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_wherever_it_is(place: int, bit: int) -> None:
    damaged = bytearray(PACKED)
    damaged[place] ^= 1 << bit
    with pytest.raises(UnusableReply, match=r"damaged|not packed by PrivLM"):
        unpack(bytes(damaged))


@pytest.mark.parametrize(
    "foreign",
    [b"", b"\x00" * 7, PACKED[:-1], PACKED + b"\x00", PACKED[:40], pickle.dumps({"w": [1.0]}), b"\xff" * 64],
    ids=["empty", "short", "cut", "longer", "header cut", "pickle", "noise"],
)
def test_foreign_bytes_are_refused(foreign: bytes) -> None:
    with pytest.raises(UnusableReply, match=f"its {len(foreign)} bytes are no safetensors"):
        unpack(foreign)


def test_safetensors_of_another_program_are_refused() -> None:
    for metadata in (None, {"format": "pt"}):
        with pytest.raises(UnusableReply, match="not packed by PrivLM"):
            unpack(save({"w": torch.ones(2)}, metadata=metadata))
    for text in ("", "[]", '{"meta": "{}"}', '{"meta": "{}", "sha256": 3}', '{"meta": 3, "sha256": "3"}'):
        with pytest.raises(UnusableReply, match="digest is that of something else"):
            unpack(save({"w": torch.ones(2)}, metadata={"privlm": text}))


def test_an_update_above_the_limit_is_refused_on_both_sides_naming_the_field() -> None:
    message = r"of 0\.0\d+ MB is larger than federated\.max_update_mb=0\.0001"
    with pytest.raises(UsageError, match=message):
        pack({"w": torch.zeros(1000)}, {}, max_bytes=100)
    with pytest.raises(UnusableReply, match=message):
        unpack(pack({"w": torch.zeros(1000)}, {}), max_bytes=100)
    assert unpack(PACKED, max_bytes=len(PACKED))[1] == META


def test_bytes_are_those_of_the_values_and_a_header() -> None:
    tensors = {"w": torch.zeros(500, 10)}
    assert tensor_bytes(tensors) == 20_000
    assert 0 < len(pack(tensors, {})) - 20_000 < 400
    assert tensor_bytes(compress(tensors, "fp16")) == 10_000
    assert tensor_bytes(compress(tensors, "int8")) == 5_004


@pytest.mark.parametrize(("kind", "error"), [("fp32", 0.0), ("fp16", 2**-11), ("int8", 0.02)])
def test_wires_against_numpy(kind: str, error: float) -> None:
    """float16 rounds each value to 11 bits, int8 to half of a 127th of the largest."""
    before = {"w": some()["w"], "n": torch.tensor(7)}
    after = expand(compress(before, kind), kind)
    x = before["w"].double().numpy()
    if kind == "fp16":
        expected = x.astype(np.float16).astype(float)
    else:
        scale = float(np.float32(abs(x).max() / 127))
        expected = np.rint(x / scale) * scale if kind == "int8" else x
    np.testing.assert_allclose(after["w"].double().numpy(), expected, rtol=1e-7, atol=0)
    assert torch.equal(after["n"], before["n"])
    assert after["w"].dtype == torch.float32
    found = wire_error(before, after)
    assert found == pytest.approx(np.linalg.norm(expected - x) / np.linalg.norm(x), rel=1e-5)
    assert found <= error
    assert (found > 0) == (kind != "fp32")


@pytest.mark.parametrize("kind", WIRES)
def test_dtypes_come_back_over_the_wire_and_integers_are_untouched(kind: str) -> None:
    before = some() | {"double": torch.ones(2).double(), "small": torch.tensor([-3, 5], dtype=torch.int8)}
    tensors, _ = unpack(pack(compress(before, kind), {}))
    after = expand(tensors, kind, like=before)
    assert fault_of(after, before) is None
    for name in ("num_batches_tracked", "mask", "small"):
        assert torch.equal(after[name], before[name])
    assert wire_error(before, after) < 0.02


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", WIRES)
def test_what_is_not_finite_is_still_seen_after_the_wire(kind: str, bad: float) -> None:
    before = {"w": torch.tensor([1.0, bad, 2.0]), "b": torch.ones(2)}
    after = expand(compress(before, kind), kind)
    assert "w holds NaN or infinity" in (fault_of(after, before) or "")
    assert torch.equal(after["b"], before["b"])
    assert after["w"].isnan().all() or kind != "int8"


def test_values_beyond_float16_are_refused_and_not_made_infinite() -> None:
    with pytest.raises(UsageError, match=r"federated\.wire=fp16: w holds values beyond 65504"):
        compress({"w": torch.tensor([7e4])}, "fp16")


@pytest.mark.parametrize("x", [torch.zeros(3), torch.empty(0), torch.tensor([1e-45, 0.0]), torch.tensor(-2.0)])
def test_int8_of_odd_tensors_stays_finite(x: torch.Tensor) -> None:
    after = expand(compress({"w": x}, "int8"), "int8")["w"]
    assert after.shape == x.shape
    torch.testing.assert_close(after, x, rtol=1e-6, atol=1e-44)


def test_a_tensor_with_the_name_of_a_scale_is_refused() -> None:
    both = {"w": torch.ones(2), "w.scale": torch.ones(())}
    with pytest.raises(UsageError, match=r"sends a scale as w\.scale"):
        compress(both, "int8")
    assert expand(compress(both, "fp16"), "fp16").keys() == both.keys()


def test_a_wire_error_of_zeros() -> None:
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert (wire_error(zero, zero), wire_error(zero, one), wire_error(one, zero)) == (0.0, math.inf, 1.0)
