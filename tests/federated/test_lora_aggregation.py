"""Aggregates of low-rank factors against the dense float64 mean of what clients have learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.federated.aggregate import NoUpdates, Tensors, UnusableReply
from privlm.federated.lora import (
    Factors,
    Fold,
    LoraUpdate,
    Pair,
    cut,
    dense_mean,
    exact_mean,
    ffa,
    joined,
    named,
    pairs,
    relative_error,
    residual,
    scaled,
    separate,
    stack,
    svd,
    truncate,
    zero_pad,
)
from privlm.federated.wire import pack, unpack
from privlm.privacy import keyed_random

SIZE, RANK, WEIGHTS, SCALE = 64, 8, (0.4, 0.3, 0.2, 0.1), 2.0
MODULES = ("layers.0.q_proj", "layers.0.v_proj")
SCALES = dict.fromkeys(MODULES, SCALE)


def clients(
    *, spread: float = 0.32, ranks: Sequence[int] = (RANK,) * 4, shape: tuple[int, int] = (SIZE, SIZE), seed: int = 0
) -> list[LoraUpdate]:
    """A_k = A_0 + spread * noise, B_k of each its own; alpha is 16, so that the scale of rank 8 is 2."""
    rng = keyed_random.generator("test", "lora", seed)

    def normal(*size: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=size)).float()

    num_outputs, num_inputs = shape
    start = {module: normal(max(ranks), num_inputs) for module in MODULES}
    return [
        LoraUpdate(
            {
                module: Pair(start[module][:rank] + spread * normal(rank, num_inputs), normal(num_outputs, rank))
                for module in MODULES
            },
            weight,
            dict.fromkeys(MODULES, 2 * RANK / rank),
        )
        for weight, rank in zip(WEIGHTS, ranks, strict=False)
    ]


def by_hand(updates: list[LoraUpdate]) -> Tensors:
    """sum of p_k s_k B_k A_k in numpy."""
    total = sum(update.weight for update in updates)
    return {
        module: torch.from_numpy(
            sum(
                update.weight / total * update.scales[module] * update.factors[module].B.double().numpy()
                @ update.factors[module].A.double().numpy()
                for update in updates
            )
        )
        for module in MODULES
    }  # fmt: skip


def error(factors: Factors, updates: list[LoraUpdate]) -> float:
    """Dense against dense, in numpy: nothing of what is tested enters."""
    exact = by_hand(updates)
    missed = [pair.B.double().numpy() @ pair.A.double().numpy() - exact[m].numpy() for m, pair in factors.items()]
    return float(np.linalg.norm(missed) / np.linalg.norm([exact[module].numpy() for module in factors]))


def with_weights_on_both_factors(updates: list[LoraUpdate]) -> Factors:
    halves = [
        {m: Pair(update.weight * pair.A, update.weight * SCALE * pair.B) for m, pair in update.factors.items()}
        for update in updates
    ]
    return joined(*halves)


def with_residual(updates: list[LoraUpdate]) -> Factors:
    means, rest = residual(updates, SCALES)
    return joined(scaled(means, SCALES), rest)


RULES: dict[str, Callable[[list[LoraUpdate]], Factors]] = {
    "separate": lambda updates: scaled(separate(updates), SCALES),
    "stack": stack,
    "weight on both factors": with_weights_on_both_factors,
    "svd, rank 8": lambda updates: scaled(svd(updates, RANK, SCALES), SCALES),
    "svd, rank 32": lambda updates: scaled(svd(updates, 4 * RANK, SCALES), SCALES),
    "residual": with_residual,
    "zero_pad": lambda updates: scaled(zero_pad(updates, SCALES), SCALES),
}


def test_the_dense_mean_is_that_of_numpy() -> None:
    updates = clients(ranks=(8, 4, 2, 8))
    for module, expected in by_hand(updates).items():
        torch.testing.assert_close(dense_mean(updates)[module], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        ("separate", 0.21, 0.26),
        ("stack", 0, 1e-6),
        ("weight on both factors", 0.6, 0.75),
        ("svd, rank 8", 0.17, 0.22),
        ("svd, rank 32", 0, 1e-6),
        ("residual", 0, 1e-6),
        ("zero_pad", 0.21, 0.26),
    ],
)
def test_four_clients_of_rank_8_miss_the_mean_by_what_the_rule_says(rule: str, low: float, high: float) -> None:
    assert low <= error(RULES[rule](clients()), clients()) <= high


def test_a_truncated_svd_is_the_best_of_its_rank() -> None:
    updates = clients()
    exact = by_hand(updates)
    lost = [torch.linalg.svdvals(exact[module])[RANK:].square().sum() for module in MODULES]
    whole = [exact[module].square().sum() for module in MODULES]
    found = error(RULES["svd, rank 8"](updates), updates)
    assert found == pytest.approx(math.sqrt(sum(lost) / sum(whole)), rel=1e-6)


@pytest.mark.parametrize("rule", ["separate", "stack", "svd, rank 8", "residual", "zero_pad"])
def test_with_one_client_every_rule_is_exact(rule: str) -> None:
    alone = clients()[2:3]
    assert error(RULES[rule](alone), alone) < 1e-6


@pytest.mark.parametrize("rule", ["separate", "stack", "svd, rank 8", "residual", "zero_pad"])
def test_where_all_share_one_A_every_rule_is_exact(rule: str) -> None:
    shared = clients(spread=0)
    assert error(RULES[rule](shared), shared) < 1e-6


def test_the_means_of_one_client_are_its_factors_bit_for_bit() -> None:
    alone = clients()[:1]
    for averaged in (separate(alone), residual(alone, SCALES)[0], zero_pad(alone, SCALES)):
        for module, pair in alone[0].factors.items():
            assert torch.equal(averaged[module].A, pair.A)
            assert torch.equal(averaged[module].B, pair.B)


def test_ffa_is_exact_keeps_A_and_refuses_another() -> None:
    shared = clients(spread=0)
    averaged = ffa(shared)
    assert error(scaled(averaged, SCALES), shared) < 1e-6
    for module in MODULES:
        assert torch.equal(averaged[module].A, shared[0].factors[module].A)
    with pytest.raises(UnusableReply, match=r"layers\.0\.q_proj: lora_A differs"):
        ffa(clients(spread=1e-6))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    shape=st.tuples(st.integers(12, 30), st.integers(12, 30)),
    seed=st.integers(0, 99),
)
def test_stack_and_svd_are_exact_with_mixed_ranks_and_any_shape(
    ranks: list[int], shape: tuple[int, int], seed: int
) -> None:
    """Also where the ranks together are more than a side of the weight."""
    updates = clients(ranks=ranks, shape=shape, seed=seed)
    assert error(stack(updates), updates) < 1e-6
    rank = min(sum(ranks), *shape)
    assert error(scaled(svd(updates, rank, SCALES), SCALES), updates) < 2e-6


def test_scales_are_folded_in_before_ranks_are_mixed() -> None:
    updates = clients(ranks=(8, 4), spread=0)
    forgotten = [replace(update, scales=SCALES) for update in updates]
    assert error(stack(updates), updates) < 1e-6
    assert error(stack(forgotten), updates) > 0.1


def test_every_client_gets_a_rank_of_its_own_with_its_own_scale() -> None:
    updates = clients(ranks=(8, 4, 2))
    exact = by_hand(updates)
    for update in updates:
        rank = update.factors[MODULES[0]].rank
        own = truncate(stack(updates), rank, update.scales)
        for module in MODULES:
            assert (own[module].A.shape, own[module].B.shape) == ((rank, SIZE), (SIZE, rank))
            U, S, V = torch.linalg.svd(exact[module])
            best = U[:, :rank] * S[:rank] @ V[:rank]
            found = update.scales[module] * own[module].B.double() @ own[module].A.double()
            torch.testing.assert_close(found, best, rtol=1e-5, atol=1e-5)


def test_directions_that_the_mean_lacks_stay_trainable() -> None:
    """A row of A that is zero beside a column of B that is zero would have no gradient ever after."""
    fresh = [
        replace(
            update, factors={module: Pair(pair.A, torch.zeros_like(pair.B)) for module, pair in update.factors.items()}
        )
        for update in clients(ranks=(2,))
    ]
    for module, pair in svd(fresh, 6, SCALES).items():
        torch.testing.assert_close(pair.A.double() @ pair.A.double().T, torch.eye(6).double(), rtol=0, atol=1e-6)
        assert not pair.B.any(), module


def test_a_rank_above_that_of_the_weight_is_refused() -> None:
    with pytest.raises(UsageError, match=r"adapter\.rank=65: layers\.0\.q_proj has a weight of \[64, 64\]"):
        svd(clients(), 65, SCALES)


def test_the_residual_has_the_rank_of_the_differences_and_none_where_nothing_is_missed() -> None:
    ranks = {module: pair.rank for module, pair in residual(clients(), SCALES)[1].items()}
    assert ranks == dict.fromkeys(MODULES, 3 * RANK)
    for exact in (clients()[:1], clients(spread=0)):
        means, rest = residual(exact, SCALES)
        assert {pair.rank for pair in rest.values()} == {0}
        assert rest[MODULES[0]].shape == (SIZE, SIZE)
        assert error(joined(scaled(means, SCALES), rest), exact) < 1e-6


def test_padding_is_the_mean_of_padded_factors() -> None:
    updates = clients(ranks=(4, 8))
    averaged, module = zero_pad(updates, SCALES), MODULES[0]
    p, (short, long) = 0.4 / 0.7, (update.factors[module] for update in updates)
    A = (1 - p) * long.A
    A[:4] += p * short.A
    B = (1 - p) * long.B
    B[:, :4] += p * short.B * 4 / SCALE  # alpha 16 and rank 4 make a scale of 4
    torch.testing.assert_close(averaged[module].A, A)
    torch.testing.assert_close(averaged[module].B, B)
    own = cut(averaged, 4)[module]
    torch.testing.assert_close(own.B @ own.A, B[:, :4] @ A[:4])


@pytest.mark.parametrize("rule", ["separate", "residual", "ffa"])
def test_rules_of_one_rank_refuse_several(rule: str) -> None:
    of = {"separate": separate, "ffa": ffa, "residual": lambda updates: residual(updates, SCALES)}[rule]
    with pytest.raises(UsageError, match=rf"federated\.lora={rule} needs one rank, .* with 4, 8: choose stack"):
        of(clients(ranks=(8, 4)))


@pytest.mark.parametrize("of", [separate, stack, ffa, dense_mean])
def test_no_updates_have_no_mean(of: Callable[[list[LoraUpdate]], object]) -> None:
    with pytest.raises(NoUpdates):
        of([])


def test_updates_of_other_modules_shapes_or_weights_are_refused() -> None:
    first, second = clients()[:2]
    fewer = replace(second, factors={MODULES[0]: second.factors[MODULES[0]]})
    with pytest.raises(UnusableReply, match=r"layers\.0\.v_proj has factors of some clients alone"):
        stack([first, fewer])
    with pytest.raises(UnusableReply, match=r"a weight of \[32, 64\] and of \[64, 64\]"):
        stack([first, clients(shape=(32, 64))[1]])
    for weight in (0.0, -1.0, math.nan):
        with pytest.raises(UnusableReply, match="weight of an update"):
            separate([first, replace(second, weight=weight)])


def test_weights_need_not_add_up_to_one() -> None:
    counts = [replace(update, weight=update.weight * 5000) for update in clients()]
    for module, pair in stack(clients()).items():
        torch.testing.assert_close(stack(counts)[module].B, pair.B)


def test_errors_from_factors_are_those_of_dense_matrices() -> None:
    updates = clients()
    by_factors = relative_error(RULES["separate"](updates), exact_mean(updates))
    assert by_factors == pytest.approx(error(RULES["separate"](updates), updates), rel=1e-10)
    assert relative_error(RULES["separate"](updates), dense_mean(updates)) == pytest.approx(by_factors, rel=1e-10)
    nothing = scaled(separate(updates), dict.fromkeys(MODULES, 0.0))
    assert relative_error(nothing, nothing) == 0
    assert relative_error(nothing, dense_mean(updates)) == 1
    assert relative_error(dense_mean(updates), nothing) == math.inf


def test_factors_are_read_by_the_names_of_peft_and_named_back() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    adapted = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"]))
    tensors = {name: tensor for name, tensor in adapted.named_parameters() if tensor.requires_grad}
    found = pairs(tensors)
    assert {module: pair.shape for module, pair in found.items()} == {
        "base_model.model.0": (5, 6),
        "base_model.model.2": (4, 5),
    }
    back = named(found)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        assert not back[name].requires_grad


def test_what_is_no_pair_of_factors_is_refused_by_name() -> None:
    A, B = torch.ones(2, 5), torch.ones(4, 2)
    whole = {"q.lora_A.default.weight": A, "q.lora_B.default.weight": B, "head.weight": torch.ones(3)}
    assert pairs(whole).keys() == {"q"}
    assert LoraUpdate.of(whole, 1.0, {"q": 2.0}).factors["q"].rank == 2
    with pytest.raises(UnusableReply, match="q comes with lora_A alone"):
        pairs({"q.lora_A.default.weight": A})
    with pytest.raises(UnusableReply, match=r"lora_A \[2, 5\] and lora_B \[4, 3\] do not fit"):
        pairs(whole | {"q.lora_B.default.weight": torch.ones(4, 3)})
    with pytest.raises(UnusableReply, match="two adapters"):
        pairs(whole | {"q.lora_A.other.weight": A})
    with pytest.raises(UsageError, match=r"q\.lora_magnitude_vector\.default\.weight is no factor of a linear"):
        pairs(whole | {"q.lora_magnitude_vector.default.weight": torch.ones(4)})
    with pytest.raises(UnusableReply, match="q has factors, but no scale"):
        LoraUpdate.of(whole, 1.0, {})


def folded(rounds: int) -> tuple[Fold, Tensors]:
    """A fold of `rounds` rounds and what it must be, dense float64."""
    fold, expected = Fold(), {module: torch.zeros(SIZE, SIZE).double() for module in MODULES}
    for number in range(rounds):
        updates = clients(seed=number)[:1]
        fold.add(stack(updates))
        for module, change in by_hand(updates).items():
            expected[module] += change
    return fold, expected


@pytest.mark.parametrize(("rounds", "is_dense"), [(1, False), (3, False), (4, True), (9, True)])
def test_a_fold_is_the_sum_of_all_rounds_in_the_smaller_form(rounds: int, is_dense: bool) -> None:
    """Rank 8 a round on 64 x 64: factors of four rounds are as large as the weight."""
    fold, expected = folded(rounds)
    assert relative_error(fold.changes, expected) < 1e-6
    assert {name.rpartition(".")[2] for name in fold.tensors()} == ({"fold"} if is_dense else {"fold_A", "fold_B"})
    again = Fold.of(unpack(pack(fold.tensors(), {}))[0])
    for name, tensor in fold.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    weights = {module: torch.ones(SIZE, SIZE) for module in MODULES} | {"other": torch.ones(1)}
    for module, weight in again.apply(weights).items():
        torch.testing.assert_close(weight.double(), 1 + expected[module], rtol=1e-5, atol=1e-4)
        assert torch.equal(weights[module], torch.ones(SIZE, SIZE))


def test_a_fold_goes_on_where_its_tensors_were_read() -> None:
    whole, _ = folded(6)
    begun = Fold.of(folded(2)[0].tensors())
    for number in range(2, 6):
        begun.add(stack(clients(seed=number)[:1]))
    for name, tensor in whole.tensors().items():
        assert torch.equal(begun.tensors()[name], tensor)


def test_a_fold_of_factors_without_rank_changes_nothing() -> None:
    fold, (_, rest) = Fold(), residual(clients(spread=0), SCALES)
    fold.add(rest)
    again = Fold.of(unpack(pack(fold.tensors(), {}))[0])
    weights = {module: torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) for module in MODULES}
    for module, weight in again.apply(weights).items():
        assert torch.equal(weight, weights[module])


def test_a_fold_knows_weights_that_are_stored_transposed() -> None:
    fold = Fold()
    fold.add({"c_attn": Pair(torch.ones(1, 6), torch.arange(6.0)[:, None])})
    plain = fold.apply({"c_attn": torch.zeros(6, 6)})["c_attn"]
    turned = fold.apply({"c_attn": torch.zeros(6, 6).bfloat16()}, transposed={"c_attn"})["c_attn"]
    assert torch.equal(turned, plain.T.bfloat16())
    assert not torch.equal(plain, plain.T)


def test_a_fold_refuses_what_does_not_fit_it() -> None:
    fold, _ = folded(1)
    with pytest.raises(ValueError, match=r"no weight for layers\.0\.q_proj"):
        fold.apply({})
    with pytest.raises(ValueError, match=r"has a weight of \[1, 64\], the fold is \[64, 64\]"):
        fold.apply(dict.fromkeys(MODULES, torch.ones(1, SIZE)))
    for name in ("q.weight", "q.fold_A", "q.fold_B"):
        with pytest.raises(UnusableReply, match=f"{name} is no part of a fold"):
            Fold.of({name: torch.ones(2, 2)})
