"""Masked sums: exact with and without drop-outs, and a server that sees nothing but masked vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privlm.errors import UsageError
from privlm.federated.aggregate import Tensors, UnusableReply, clipped, norm
from privlm.federated.secure_aggregation import (
    PRIME,
    FixedPoint,
    MaskingServer,
    SecureSum,
    Share,
    TooFewSurvivors,
    _pair_mask,
    _self_mask,
    _unsigned,
    recovered,
    split,
)
from privlm.federated.wire import pack, unpack
from privlm.privacy import keyed_random

pytestmark = pytest.mark.filterwarnings("error")  # numpy warns of scalars that wrap

CLIENTS = [f"site {number}" for number in (3, 1, 12, 2, 7)]
CLIP, THRESHOLD = 1.5, 3


def vector(client: str, size: float = 1.0) -> Tensors:
    rng = keyed_random.generator("test", client)
    drawn = {"w": rng.normal(size=(40, 5)), "b": rng.normal(size=7), "s": rng.normal(size=())}
    return clipped({name: torch.tensor(x, dtype=torch.float32) for name, x in drawn.items()}, size)


def masked_of(secure: SecureSum, survivors: Sequence[str]) -> dict[str, Tensors]:
    """Over the wire, as it travels."""
    return {client: unpack(pack(secure.client(client).mask(vector(client)), {}))[0] for client in survivors}


def plain_sum(secure: SecureSum, survivors: Sequence[str]) -> Tensors:
    """Of what the survivors encode, as whole numbers."""
    encoded = [secure.point.encode(vector(client)) for client in survivors]
    return {name: sum(torch.from_numpy(one[name].view(np.int32)).long() for one in encoded) for name in encoded[0]}  # type: ignore[misc]


@pytest.mark.parametrize("dropped", [[], *combinations(CLIENTS, 1), *combinations(CLIENTS, 2)])
def test_masks_cancel_bit_for_bit_whoever_drops_out(dropped: Sequence[str]) -> None:
    survivors = [client for client in CLIENTS if client not in dropped]
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=4)
    found = secure.sum(masked_of(secure, survivors))
    for name, whole in plain_sum(secure, survivors).items():
        assert whole.abs().max() < 2**31
        assert torch.equal(found[name], (whole.double() * secure.point.step).float())
        exact = sum(vector(client)[name].double() for client in survivors)
        bound = len(survivors) * secure.point.step / 2 + 2**-24 * exact.abs().max()
        assert (found[name] - exact).abs().max() <= bound
        assert found[name].shape == exact.shape


def test_a_value_is_off_by_half_a_step_at_most() -> None:
    point, x = FixedPoint(CLIP, 5), vector(CLIENTS[0])["w"].double().numpy()
    off = point.encode(vector(CLIENTS[0]))["w"].view(np.int32) * point.step - x
    assert 0.45 * point.step < np.abs(off).max() <= 0.5 * point.step
    assert abs(off.mean()) < 0.1 * point.step


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), num_clients=st.integers(2, 9), seed=st.integers(0, 2**40))
def test_any_survivors_above_the_threshold_give_their_sum(data: st.DataObject, num_clients: int, seed: int) -> None:
    clients = [f"c{number}" for number in range(num_clients)]
    threshold = data.draw(st.integers(2, num_clients))
    survivors = data.draw(st.permutations(clients))[: data.draw(st.integers(threshold, num_clients))]
    answering = data.draw(st.permutations(survivors))[: data.draw(st.integers(threshold, len(survivors)))]
    secure = SecureSum(clients, threshold, CLIP, seed)
    found = secure.sum(masked_of(secure, survivors), answering)
    for name, whole in plain_sum(secure, survivors).items():
        assert torch.equal(found[name], (whole.double() * secure.point.step).float())


@pytest.mark.parametrize("num_clients", [2, 7, 1000])
def test_a_sum_of_the_largest_values_does_not_wrap(num_clients: int) -> None:
    point = FixedPoint(0.3, num_clients)
    largest = {"w": torch.tensor([0.3]), "v": torch.tensor([-0.0])}
    level = int(point.encode(largest)["w"].view(np.int32)[0])
    assert level == point.levels
    assert num_clients * level <= 2**31 - 1 < num_clients * (level + 1)
    assert point.decode({"w": np.array([level], dtype=np.uint32)})["w"].item() == pytest.approx(0.3)


def test_all_clients_at_the_clipping_norm_add_up() -> None:
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0)
    masked = {client: secure.client(client).mask({"w": torch.tensor([-CLIP])}) for client in CLIENTS}
    assert secure.sum(masked)["w"].item() == pytest.approx(-5 * CLIP)


def test_long_vectors_are_clipped_by_their_client() -> None:
    secure = SecureSum(CLIENTS[:2], 2, 0.5, seed=0)
    found = secure.sum({client: secure.client(client).mask(vector(client, 100.0)) for client in CLIENTS[:2]})
    expected = [clipped(vector(client, 100.0), 0.5) for client in CLIENTS[:2]]
    assert norm(expected[0]) == pytest.approx(0.5)
    for name in found:
        torch.testing.assert_close(found[name], expected[0][name] + expected[1][name])


class Spy:
    """Everything that reaches the server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.public_keys: dict[str, int] = {}
        self.masked: dict[str, Tensors] = {}
        self.shares: list[Mapping[str, Share]] = []
        made, total = MaskingServer.__init__, MaskingServer.total

        def seen_made(server: MaskingServer, public_keys: Mapping[str, int], threshold: int) -> None:
            self.public_keys |= public_keys
            made(server, public_keys, threshold)

        def seen_total(server: MaskingServer, masked: Any, shares: Any) -> Any:
            self.masked, self.shares = dict(masked), list(shares)
            return total(server, masked, shares)

        monkeypatch.setattr(MaskingServer, "__init__", seen_made)
        monkeypatch.setattr(MaskingServer, "total", seen_total)


def share_of_equal_words(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    return float(np.mean(np.concatenate([(left[name] == right[name]).reshape(-1) for name in left])))


def words(tensors: Tensors) -> dict[str, Any]:
    return {name: _unsigned(tensor) for name, tensor in tensors.items()}


def test_the_server_sees_no_unmasked_vector_and_never_both_secrets_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=9)
    late, survivors = CLIENTS[2], [client for client in CLIENTS if client != CLIENTS[2]]
    late_vector = secure.client(late).mask(vector(late))
    secure.sum(masked_of(secure, survivors))
    assert spy.masked.keys() == set(survivors)
    learned = {client: recovered([of[client] for of in spy.shares]) for client in CLIENTS}
    for client in CLIENTS:
        side = secure.client(client)
        assert learned[client] == (side._key if client == late else side._self_seed)
        assert learned[client] != (side._self_seed if client == late else side._key)
        assert spy.public_keys[client] not in (side._key, side._self_seed)
    for client in survivors:
        plain, sent = secure.point.encode(vector(client)), words(spy.masked[client])
        without_self = {name: word - mask for (name, word), mask in zip(
            sent.items(), _self_mask(learned[client], sent).values(), strict=True)}  # fmt: skip
        for seen in (sent, without_self):
            assert share_of_equal_words(seen, plain) < 0.02
    opened = words(late_vector)
    for client in survivors:
        mask = _pair_mask(learned[late], spy.public_keys[client], opened)
        is_first = CLIENTS.index(late) < CLIENTS.index(client)
        opened = {name: opened[name] - mask[name] if is_first else opened[name] + mask[name] for name in opened}
    assert share_of_equal_words(opened, secure.point.encode(vector(late))) < 0.02
    self_mask = _self_mask(secure.client(late)._self_seed, opened)
    assert (
        share_of_equal_words(  # what the self mask alone has kept
            {name: opened[name] - self_mask[name] for name in opened}, secure.point.encode(vector(late))
        )
        == 1
    )


def test_the_server_holds_no_secret_of_a_client() -> None:
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=9)
    held = repr(vars(secure.server))
    for client in CLIENTS:
        side = secure.client(client)
        assert str(side.public_key) in held
        assert str(side._key) not in held
        assert str(side._self_seed) not in held


def test_masked_vectors_are_uniform_and_know_nothing_of_what_they_hide() -> None:
    nothing = {"w": torch.zeros(4000)}
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=2)
    sent = [words(secure.client(client).mask(nothing))["w"] for client in CLIENTS]
    for vector_ in sent:
        assert stats.kstest(vector_ / 2**32, "uniform").pvalue > 1e-4
    correlations = np.corrcoef(np.stack(sent).astype(float))[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(4000)


def test_masks_of_two_rounds_differ_and_a_seed_gives_one() -> None:
    def sent(seed: int) -> Tensors:
        return SecureSum(CLIENTS, THRESHOLD, CLIP, seed).client(CLIENTS[0]).mask(vector(CLIENTS[0]))

    assert torch.equal(sent(1)["w"], sent(1)["w"])
    assert share_of_equal_words(words(sent(1)), words(sent(2))) < 0.02


def test_a_client_never_gives_both_shares_of_another() -> None:
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0)
    client = secure.client(CLIENTS[0])
    first = client.unmask(CLIENTS[:4])
    assert client.unmask(CLIENTS[3::-1]) == first
    for others in (CLIENTS, CLIENTS[:3], CLIENTS[1:]):
        with pytest.raises(ValueError, match="shares were given for other survivors"):
            client.unmask(others)
    with pytest.raises(TooFewSurvivors):
        secure.client(CLIENTS[1]).unmask(CLIENTS[:2])


def test_a_client_masks_once() -> None:
    client = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0).client(CLIENTS[0])
    client.mask(vector(CLIENTS[0]))
    with pytest.raises(ValueError, match="has sent a vector under this mask"):
        client.mask(vector(CLIENTS[0]))


def test_below_the_threshold_nothing_is_unmasked() -> None:
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0)
    with pytest.raises(TooFewSurvivors, match=r"2 clients sent a vector, federated\.secure_threshold asks for 3"):
        secure.sum(masked_of(secure, CLIENTS[:2]))
    with pytest.raises(TooFewSurvivors, match="0 clients sent"):
        secure.sum({})
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0)
    with pytest.raises(TooFewSurvivors, match="2 clients gave their shares"):
        secure.sum(masked_of(secure, CLIENTS), answering=CLIENTS[:2])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(secret=st.integers(0, PRIME - 1), num=st.integers(2, 9), data=st.data())
def test_a_threshold_of_shares_gives_the_secret_and_fewer_do_not(secret: int, num: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, num))
    shares = data.draw(st.permutations(split(secret, threshold, num, keyed_random.generator("test", secret))))
    assert recovered(shares[:threshold]) == recovered(shares) == secret
    assert recovered(shares[: threshold - 1]) != secret


def test_fewer_shares_than_the_threshold_say_nothing_of_the_secret() -> None:
    """One share of two: over polynomials it is uniform, whatever the secret is."""
    rng = keyed_random.generator("test", "shares")
    for secret in (0, PRIME - 1):
        first = np.array([split(secret, 2, 2, rng)[0].y / PRIME for _ in range(1000)])
        assert stats.kstest(first, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1}, r"federated\.secure_threshold: 1 of 5 clients"),
        ({"threshold": 6}, r"federated\.secure_threshold: 6"),
        ({"clip": math.inf}, r"federated\.secure_clip=inf"),
        ({"clip": 0.0}, r"federated\.secure_clip=0\.0"),
        ({"client_ids": ["a", "b", "c", "a"]}, "two clients are called 'a'"),
        ({"client_ids": ["a"], "threshold": 1}, r"federated\.secure_threshold: 1 of 1 clients"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SecureSum(**({"client_ids": CLIENTS, "threshold": THRESHOLD, "clip": CLIP, "seed": 0} | options))


def test_a_client_looks_at_its_own_vector() -> None:
    client = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0).client(CLIENTS[0])
    with pytest.raises(UnusableReply, match="w holds NaN or infinity"):
        client.mask({"w": torch.tensor([1.0, math.nan])})
    with pytest.raises(UsageError, match=r"n is torch\.int64: a secure sum is of floating tensors"):
        client.mask({"w": torch.ones(1), "n": torch.tensor(3)})
    assert client.mask({"w": torch.ones(1)})["w"].dtype == torch.int32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": torch.zeros(3, dtype=torch.int32)}, r"of 'site 12' does not fit: w is int32 \[3\], not int32 \[2\]"),
        ({"v": torch.zeros(2, dtype=torch.int32)}, "of 'site 12' does not fit: v is unknown"),
        ({"w": torch.zeros(2)}, "does not fit: w is float32"),
    ],
)
def test_masked_vectors_that_do_not_fit_are_refused(changed: Tensors, message: str) -> None:
    secure = SecureSum(CLIENTS, THRESHOLD, CLIP, seed=0)
    masked = {client: secure.client(client).mask({"w": torch.ones(2)}) for client in CLIENTS}
    with pytest.raises(UnusableReply, match=message):
        secure.sum(masked | {"site 12": changed})
    with pytest.raises(UnusableReply, match="'stranger' is no client of this round"):
        secure.sum(masked | {"stranger": masked["site 1"]})
