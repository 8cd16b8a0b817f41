"""Means and differences of state dicts against numpy in float64, and what is refused by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from privlm.errors import UsageError
from privlm.federated.aggregate import (
    WEIGHTINGS,
    Mean,
    NoUpdates,
    Tensors,
    UnusableReply,
    add,
    client_weight,
    clipped,
    difference,
    fault_of,
    is_unchanged,
    mean,
    norm,
)
from privlm.privacy import keyed_random

WEIGHTS = (3.0, 1.0, 7.0, 2.5)


def state(client: int) -> Tensors:
    rng = keyed_random.generator("test", client)
    return {
        "body.weight": torch.from_numpy(rng.normal(size=(5, 3))).float(),
        "body.half": torch.from_numpy(rng.normal(size=4)).bfloat16(),
        "norm.running_mean": torch.from_numpy(rng.normal(size=3)).double(),
        "norm.num_batches_tracked": torch.tensor(10 - client),
        "seen": torch.tensor([client == 2, False]),
    }


def oracle(states: list[Tensors], name: str) -> np.ndarray:
    return np.average([one[name].double().numpy() for one in states], axis=0, weights=WEIGHTS)


def bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_the_mean_is_that_of_float64_and_keeps_dtypes() -> None:
    states = [state(client) for client in range(4)]
    found = mean(zip(states, WEIGHTS, strict=True))
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in states[0].items()}
    for name, tolerance in {"body.weight": 1e-7, "body.half": 4e-3, "norm.running_mean": 1e-15}.items():
        np.testing.assert_allclose(found[name].double().numpy(), oracle(states, name), rtol=tolerance, atol=tolerance)


def test_half_precision_is_rounded_once_and_not_at_every_client() -> None:
    states = [{"w": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, *[1.0078125] * 99)]
    found = mean((one, 1.0) for one in states)
    assert found["w"].item() == torch.tensor((1 + 99 * 1.0078125) / 100, dtype=torch.float64).bfloat16().item()


def test_integer_tensors_take_the_maximum_and_bool_ones_are_or_ed() -> None:
    found = mean((state(client), 1.0) for client in range(4))
    assert torch.equal(found["norm.num_batches_tracked"], torch.tensor(10))
    assert torch.equal(found["seen"], torch.tensor([True, False]))


@pytest.mark.parametrize("count", [1, 3])
def test_the_mean_of_equal_state_dicts_is_one_of_them_bit_for_bit(count: int) -> None:
    one = state(0) | {"odd": torch.tensor([-0.0, math.inf, -math.inf, 1e-45, 3.4e38])}
    found = mean((one, 0.3) for _ in range(count))
    for name, tensor in one.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(bits(found[name]), bits(tensor))


def test_the_mean_is_no_view_of_what_was_given_and_changes_nothing() -> None:
    one, total = state(0), Mean()
    total.add(one, 2.0)
    first, spoiled = total.result(), total.result()
    for tensor in spoiled.values():
        tensor.zero_()
    assert torch.equal(total.result()["norm.running_mean"], one["norm.running_mean"])
    total.add(state(1), 1.0)
    for name, tensor in state(0).items():
        assert torch.equal(one[name], tensor)
        assert torch.equal(first[name], tensor)


def test_a_round_without_updates_has_no_mean() -> None:
    with pytest.raises(NoUpdates, match="no client"):
        mean([])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_that_are_not_positive_are_refused(weight: float) -> None:
    total = Mean()
    with pytest.raises(UnusableReply, match="weight of an update is"):
        total.add(state(0), weight)
    with pytest.raises(NoUpdates):
        total.result()


def test_a_tensor_that_would_broadcast_is_refused_and_leaves_the_mean_as_it_was() -> None:
    total = Mean()
    total.add({"a": torch.ones(3), "b": torch.ones(2)}, 1.0)
    with pytest.raises(UnusableReply, match=r"b is float32 \[1\], not float32 \[2\]"):
        total.add({"a": torch.zeros(3), "b": torch.zeros(1)}, 1.0)
    assert torch.equal(total.result()["a"], torch.ones(3))


def test_a_difference_leads_back_and_is_float32() -> None:
    before, after = state(0), state(1)
    delta = difference(after, before)
    assert {x.dtype for x in delta.values()} == {torch.float32}
    assert delta.keys() == {"body.weight", "body.half", "norm.running_mean"}
    back = add(before, delta)
    for name in delta:
        assert back[name].dtype == before[name].dtype
        torch.testing.assert_close(
            back[name].double(), after[name].double(), rtol=1e-2 if "half" in name else 1e-6, atol=1e-6
        )
    assert torch.equal(back["norm.num_batches_tracked"], before["norm.num_batches_tracked"])
    half = add(before, delta, 0.5)["norm.running_mean"]
    torch.testing.assert_close(
        half, (before["norm.running_mean"] + after["norm.running_mean"]) / 2, rtol=1e-6, atol=1e-6
    )
    assert torch.equal(
        difference({"mask": torch.tensor([-math.inf])}, {"mask": torch.tensor([-math.inf])})["mask"], torch.zeros(1)
    )


def test_differences_of_other_names_or_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="b is unknown"):
        add({"a": torch.ones(2)}, {"b": torch.ones(2)})
    with pytest.raises(ValueError, match=r"a is float32 \[1\]"):
        add({"a": torch.ones(2)}, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="a is missing"):
        difference({}, {"a": torch.ones(2)})


def test_the_norm_is_over_all_floating_tensors_together() -> None:
    tensors = {"a": torch.full((3,), 2.0), "b": torch.tensor(1.0).half(), "n": torch.tensor(100)}
    assert norm(tensors) == math.sqrt(13)
    assert norm({}) == 0
    assert norm({"large": torch.full((4,), 1e38)}) == pytest.approx(2e38)


def test_clipping_scales_all_tensors_together_and_leaves_short_ones() -> None:
    tensors = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0]), "n": torch.tensor(7)}
    cut = clipped(tensors, 2.5)
    assert (cut["a"].item(), cut["b"].item(), cut["n"].item()) == (1.5, 2.0, 7)
    assert clipped(tensors, 5.0)["a"] is tensors["a"]


def altered(**changes: Tensor | None) -> Tensors:
    tensors = {"w": torch.ones(2, 3), "b": torch.zeros(3)} | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        (altered(), None),
        ({}, "no tensor came"),
        (altered(b=None), "b is missing"),
        (altered(c=torch.ones(1)), "c is unknown"),
        (altered(w=torch.ones(3, 2)), "w is float32 [3, 2], not float32 [2, 3]"),
        (altered(w=torch.ones(2, 3).bfloat16()), "w is bfloat16 [2, 3], not float32 [2, 3]"),
        (altered(b=torch.tensor([0, math.nan, math.inf])), "b holds NaN or infinity (2 of 3 values)"),
    ],
)
def test_faults_of_updates_are_named(tensors: Tensors, fault: str | None) -> None:
    assert fault_of(tensors, altered()) == fault


def test_an_infinity_that_only_comes_back_is_no_fault_and_nan_always_is() -> None:
    sent = {"mask": torch.tensor([0.0, -math.inf])}
    assert fault_of(sent, sent, received=sent) is None
    assert fault_of({"mask": torch.tensor([-math.inf, -math.inf])}, sent, received=sent) == (
        "mask holds NaN or infinity (1 of 2 values)"
    )
    spoiled = {"mask": torch.tensor([0.0, math.nan])}
    assert fault_of(spoiled, sent, received=spoiled) is not None


def test_an_update_equal_to_what_was_sent_is_seen() -> None:
    sent = state(0)
    assert is_unchanged(state(0) | {"norm.num_batches_tracked": torch.tensor(99)}, sent)
    assert not is_unchanged(sent | {"body.weight": sent["body.weight"] + 1e-6}, sent)


def test_weightings() -> None:
    assert {kind: client_weight(kind, 30, 20) for kind in WEIGHTINGS} == {"samples": 30, "uniform": 1, "clipped": 20}
    assert client_weight("clipped", 7, 20) == 7
    for kind in WEIGHTINGS:
        for examples in (0, -1, math.nan, math.inf):
            with pytest.raises(UnusableReply, match="number of examples is"):
                client_weight(kind, examples, 20)
    with pytest.raises(UsageError, match=r"federated\.max_weight=None"):
        client_weight("clipped", 7)
