"""A simulation of secure aggregation with pairwise masks (Bonawitz et al., CCS 2017, protocol for honest-but-curious).

Each client sends its vector in fixed point modulo 2^32, plus a mask of its own, plus or minus one mask for each other
client, whose seed the two agree on: added by the one that comes first in the list of clients, subtracted by the other.
In the sum pairwise masks of survivors cancel. Of the others the server collects shares (Shamir, CACM 1979): `threshold`
of them give the key of a client that dropped out, and so the pairwise masks that nobody cancelled, or the seed of the
self mask of one that did not. A client gives one of the two kinds for each other client, never both: with both the
server could open a vector that arrived late.

What the protocol protects: the server learns the sum over the survivors and no more, as long as fewer than `threshold`
clients work with it. It does not protect the sum itself (that is what noise is for), nor from clients that send wrong
vectors: nobody sees a single one, so that a client must look at its own for NaN, shape and norm.

What this simulation does not give: one process holds the keys of all clients, and they are functions of a seed; there
is no directory of public keys, no encryption of shares on their way, no defence against a server that lies about who
dropped out; the group of the key agreement is far too small. It is here to measure what fixed point and drop-outs do to
a model, and to count bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privlm.errors import PrivLMError, UsageError
from privlm.federated.aggregate import Tensors, UnusableReply, clipped, fault_of
from privlm.federated.sampling import require_distinct
from privlm.privacy import keyed_random

Words = dict[str, npt.NDArray[np.uint32]]
"""Name -> a vector in fixed point, modulo 2^32."""

PRIME = 2**127 - 1
"""Of the field of the shares, and of the group of the key agreement."""

_BASE = 3
_LARGEST = 2**31 - 1


class TooFewSurvivors(PrivLMError):
    """Fewer clients than the threshold are there: nothing can be unmasked."""

    def __init__(self, found: int, threshold: int, what: str) -> None:
        super().__init__(
            f"{found} clients {what}, federated.secure_threshold asks for {threshold}: the sum stays masked"
        )


class Share(NamedTuple):
    """A point of the polynomial whose value at 0 is the secret."""

    x: int
    y: int


def split(secret: int, threshold: int, num_shares: int, rng: np.random.Generator) -> list[Share]:
    """Shamir's shares at x = 1, 2, ...: `threshold` of them give the secret, fewer say nothing of it."""
    assert 0 <= secret < PRIME, "the secret is no element of the field"
    coefficients = [secret, *(_element(rng) for _ in range(threshold - 1))]
    return [Share(x, _polynomial(coefficients, x)) for x in range(1, num_shares + 1)]


def _polynomial(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def recovered(shares: Sequence[Share]) -> int:
    """The secret, by Lagrange's interpolation at 0; another number where there are fewer shares than the threshold."""
    secret = 0
    for x, y in shares:
        others = [share.x for share in shares if share.x != x]
        top, bottom = 1, 1
        for other in others:
            top, bottom = top * other % PRIME, bottom * (other - x) % PRIME
        secret = (secret + y * top * pow(bottom, -1, PRIME)) % PRIME
    return secret


def _element(rng: np.random.Generator) -> int:
    return int.from_bytes(rng.bytes(24), "little") % PRIME


@dataclass(frozen=True)
class FixedPoint:
    """Vectors of L2 norm `clip` as integers of `levels` steps for the length of `clip`.

    A sum of `num_clients` of them stays below 2^31 and cannot wrap.
    """

    clip: float
    num_clients: int

    @property
    def levels(self) -> int:
        return _LARGEST // self.num_clients

    @property
    def step(self) -> float:
        """The width of a quantisation step; a value is off by half of it at most."""
        return self.clip / self.levels

    def encode(self, tensors: Tensors) -> Words:
        """Clips to the norm and rounds."""
        return {name: self._words(tensor) for name, tensor in clipped(tensors, self.clip).items()}

    def _words(self, tensor: Tensor) -> npt.NDArray[np.uint32]:
        levels = np.rint(tensor.detach().cpu().double().numpy() / self.step)
        inside = np.clip(levels, -self.levels, self.levels)  # a norm in floats may be above its bound by a rounding
        return np.asarray(inside.astype(np.int64).astype(np.uint32))

    def decode(self, words: Words) -> Tensors:
        """float32."""
        return {name: (_signed(word).double() * self.step).float() for name, word in words.items()}


def _signed(word: npt.NDArray[np.uint32]) -> Tensor:
    return torch.from_numpy(word.view(np.int32))


def _unsigned(tensor: Tensor) -> npt.NDArray[np.uint32]:
    return tensor.cpu().contiguous().numpy().view(np.uint32)


def _expanded(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    return np.asarray(rng.integers(0, 2**32, shape, dtype=np.uint32))


def _self_mask(seed: int, like: Words) -> Words:
    """What a seed expands to, one stream for each name."""
    return {
        name: _expanded(keyed_random.generator("secure aggregation, self mask", seed, name), word.shape)
        for name, word in like.items()
    }


def _pair_mask(own_key: int, public_key: int, like: Words) -> Words:
    """The same for both of a pair: g^ab (Diffie and Hellman)."""
    seed = pow(public_key, own_key, PRIME)
    return {
        name: _expanded(keyed_random.generator("secure aggregation, pair mask", seed, name), word.shape)
        for name, word in like.items()
    }


def _plus(words: Words, mask: Words) -> Words:
    return {name: np.asarray(np.add(word, mask[name])) for name, word in words.items()}  # modulo 2^32, as uint32 is


def _minus(words: Words, mask: Words) -> Words:
    return {name: np.asarray(np.subtract(word, mask[name])) for name, word in words.items()}


class MaskingClient:
    """The side of one client: its secrets, the shares that it holds of the others', and what it lets out."""

    def __init__(self, client: str, clients: Sequence[str], threshold: int, point: FixedPoint, seed: int) -> None:
        rng = keyed_random.generator("secure aggregation, client", seed, client)
        self._client, self._clients = client, list(clients)
        self._threshold, self._point = threshold, point
        self._key, self._self_seed = _element(rng), _element(rng)
        self._shares = [split(secret, threshold, len(clients), rng) for secret in (self._key, self._self_seed)]
        self._held: dict[str, tuple[Share, Share]] = {}
        self._has_masked = False
        self._survivors: frozenset[str] | None = None
        self.public_key = pow(_BASE, self._key, PRIME)

    def shares_for(self, place: int) -> tuple[Share, Share]:
        """For the client at `place`: shares of the key and of the self seed."""
        key_shares, seed_shares = self._shares
        return key_shares[place], seed_shares[place]

    def receive(self, shares: Mapping[str, tuple[Share, Share]], public_keys: Mapping[str, int]) -> None:
        """What the others have for this client."""
        self._held, self._public_keys = dict(shares), dict(public_keys)

    def mask(self, tensors: Tensors) -> Tensors:
        """The tensors, times their weight already, as int32 that look random: what travels.

        Raises UnusableReply for tensors that are not finite, UsageError for ones that are not floating, ValueError the
        second time: one mask on two vectors shows their difference.
        """
        if self._has_masked:
            raise ValueError(f"{self._client!r} has sent a vector under this mask: make a SecureSum for each round")
        _require_sendable(tensors)
        self._has_masked = True
        words = self._point.encode(tensors)
        masked = _plus(words, _self_mask(self._self_seed, words))
        for other in self._clients:
            if other != self._client:
                masked = self._with_pair_mask(masked, other)
        return {name: _signed(word) for name, word in masked.items()}

    def _with_pair_mask(self, words: Words, other: str) -> Words:
        is_first = self._clients.index(self._client) < self._clients.index(other)
        return (_plus if is_first else _minus)(words, _pair_mask(self._key, self._public_keys[other], words))

    def unmask(self, survivors: Collection[str]) -> dict[str, Share]:
        """Client -> this client's share of its self seed where it is a survivor, of its key where it dropped out.

        Raises TooFewSurvivors below the threshold, ValueError where other survivors were named before: the two answers
        would give both secrets of one client.
        """
        named = frozenset(survivors)
        if len(named) < self._threshold:
            raise TooFewSurvivors(len(named), self._threshold, "sent a vector")
        if self._survivors not in (None, named):
            raise ValueError("shares were given for other survivors: with these too both masks of a client would fall")
        self._survivors = named
        return {client: of_seed if client in named else of_key for client, (of_key, of_seed) in self._held.items()}


class MaskingServer:
    """The side of the server: it is given public keys, masked vectors and shares, and no secret of a client."""

    def __init__(self, public_keys: Mapping[str, int], threshold: int) -> None:
        self._public_keys, self._threshold = dict(public_keys), threshold
        self._clients = list(public_keys)

    def check(self, masked: Mapping[str, Tensors]) -> None:
        """Raises TooFewSurvivors below the threshold, UnusableReply where vectors have other names, shapes or dtypes
        than the first, or are of an unknown client.
        """
        if len(masked) < self._threshold:
            raise TooFewSurvivors(len(masked), self._threshold, "sent a vector")
        first = next(iter(masked.values()))
        for client, tensors in masked.items():
            if client not in self._public_keys:
                raise UnusableReply(f"{client!r} is no client of this round")
            if fault := fault_of(tensors, {name: tensor.int() for name, tensor in first.items()}):
                raise UnusableReply(f"the masked vector of {client!r} does not fit: {fault}")

    def total(self, masked: Mapping[str, Tensors], shares: Sequence[Mapping[str, Share]]) -> Words:
        """The sum of the survivors' vectors in fixed point.

        Args:
            masked: survivor -> what it sent.
            shares: what `unmask` gave at each client that still answers.

        Raises as `check` does, and TooFewSurvivors where fewer than the threshold answer.
        """
        self.check(masked)
        if len(shares) < self._threshold:
            raise TooFewSurvivors(len(shares), self._threshold, "gave their shares")
        vectors = [{name: _unsigned(tensor) for name, tensor in one.items()} for one in masked.values()]
        words = vectors[0]
        for vector in vectors[1:]:
            words = _plus(words, vector)
        for client in self._clients:
            secret = recovered([of[client] for of in shares[: self._threshold]])
            if client in masked:
                words = _minus(words, _self_mask(secret, words))
            else:
                words = self._without_pair_masks(words, client, secret, masked)
        return words

    def _without_pair_masks(self, words: Words, dropped: str, key: int, survivors: Iterable[str]) -> Words:
        for survivor in survivors:
            is_first = self._clients.index(survivor) < self._clients.index(dropped)
            words = (_minus if is_first else _plus)(words, _pair_mask(key, self._public_keys[survivor], words))
        return words


class SecureSum:
    """One sum over clients: keys are agreed and shares dealt out when it is made. A round needs one of its own.

    Guarantee of the arithmetic: with any survivors, `threshold` of them or more, `sum` is the sum of what they encoded,
    bit for bit, and each value is within half a quantisation step for each survivor of the sum of the clipped vectors
    (and float32 rounding).
    """

    def __init__(self, client_ids: Sequence[str], threshold: int, clip: float, seed: int) -> None:
        """
        Args:
            client_ids: of the clients that take part in the round.
            threshold: how many must survive, 2 or more. More than half of the clients is usual.
            clip: L2 norm to which a client's vector is clipped; a finite number, it chooses the step.
            seed: a function of run seed and round: masks of two rounds must differ.

        Raises UsageError for settings out of range.
        """
        require_distinct(client_ids)
        if not 2 <= threshold <= len(client_ids):
            raise UsageError(
                f"federated.secure_threshold: {threshold} of {len(client_ids)} clients in a round: 2 or more must be "
                "needed, and no more than there are"
            )
        if not 0 < clip < float("inf"):
            raise UsageError(f"federated.secure_clip={clip}: fixed point needs a finite clipping norm above 0")
        self.point = FixedPoint(clip, len(client_ids))
        self._clients = {
            client: MaskingClient(client, client_ids, threshold, self.point, seed) for client in client_ids
        }
        self.server = MaskingServer({client: side.public_key for client, side in self._clients.items()}, threshold)
        self._deal_out()

    def _deal_out(self) -> None:
        """Under the protocol these shares go through the server, encrypted for their receivers."""
        public_keys = {client: side.public_key for client, side in self._clients.items()}
        for place, side in enumerate(self._clients.values()):
            side.receive({client: other.shares_for(place) for client, other in self._clients.items()}, public_keys)

    def client(self, client: str) -> MaskingClient:
        return self._clients[client]

    def sum(self, masked: Mapping[str, Tensors], answering: Collection[str] | None = None) -> Tensors:
        """The float32 sum of the tensors of the survivors.

        Args:
            masked: survivor -> what its `mask` gave; the other clients have dropped out.
            answering: survivors that are still there when shares are asked for; all of them for None.

        Raises TooFewSurvivors below the threshold, UnusableReply for vectors that do not fit each other. The server can
        look at this sum alone: `fault_of` judges it.
        """
        self.server.check(masked)
        there = [client for client in masked if answering is None or client in answering]
        shares = [self._clients[client].unmask(masked.keys()) for client in there]
        return self.point.decode(self.server.total(masked, shares))


def _require_sendable(tensors: Tensors) -> None:
    if fault := fault_of(tensors, tensors):
        raise UnusableReply(fault)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{name} is {tensor.dtype}: a secure sum is of floating tensors; keep it on the client")
