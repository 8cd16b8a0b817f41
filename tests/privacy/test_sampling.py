"""Poisson batches: independent coins, random sizes, the same on every rank."""

import numpy as np
import pytest
from scipy import stats

from privlm.errors import UsageError
from privlm.privacy.sampling import PoissonSampler, micro_batches, share

pytestmark = pytest.mark.torch_free

N, RATE, DRAWS = 200, 0.1, 10_000


@pytest.fixture(scope="module", params=["seeded", "secure"])
def included(request: pytest.FixtureRequest) -> np.ndarray:
    """[DRAWS, N], 1 where the record was drawn."""
    sampler = PoissonSampler(N, RATE, seed=3 if request.param == "seeded" else None)
    table = np.zeros((DRAWS, N))
    for step in range(DRAWS):
        table[step, sampler.indices(step)] = 1
    return table


# The secure sampler is random: its tests use levels that fail by chance once in a million runs.
LEVEL = 1e-6


def test_every_record_is_drawn_at_the_sampling_rate(included: np.ndarray) -> None:
    deviation = (included.sum(0) - DRAWS * RATE) ** 2 / (DRAWS * RATE * (1 - RATE))
    assert LEVEL < stats.chi2.sf(deviation.sum(), N) < 1 - LEVEL


def test_batch_size_is_binomial(included: np.ndarray) -> None:
    sizes = included.sum(1)
    mean, variance = N * RATE, N * RATE * (1 - RATE)
    assert abs(sizes.mean() - mean) < 5 * np.sqrt(variance / DRAWS)
    assert abs(sizes.var() - variance) < 5 * variance * np.sqrt(2 / DRAWS)


@pytest.mark.parametrize("between", ["records", "steps"])
def test_inclusion_is_pairwise_independent(included: np.ndarray, between: str) -> None:
    table = included[:400].T if between == "steps" else included
    table = table - table.mean(0)
    correlation = np.corrcoef(table, rowvar=False)[np.triu_indices(table.shape[1], 1)]
    assert abs(correlation.mean()) * np.sqrt(len(correlation) * len(table)) < 6
    assert correlation.std() * np.sqrt(len(table)) == pytest.approx(1, abs=0.05)


def test_seeded_batches_depend_on_seed_and_step_only() -> None:
    sampler = PoissonSampler(N, RATE, seed=5)
    batches = [sampler.indices(step).tolist() for step in range(20)]
    assert [PoissonSampler(N, RATE, seed=5).indices(step).tolist() for step in range(19, -1, -1)] == batches[::-1]
    assert len({tuple(batch) for batch in batches}) == 20
    assert PoissonSampler(N, RATE, seed=6).indices(0).tolist() != batches[0]
    assert batches[0] == sorted(batches[0])
    assert sampler.indices(0).dtype == np.int64


def test_secure_batches_differ_and_rank_0_decides() -> None:
    assert (
        PoissonSampler(N, RATE, seed=None).indices(0).tolist() != PoissonSampler(N, RATE, seed=None).indices(0).tolist()
    )
    from_rank_0 = np.array([4, 9])
    sampler = PoissonSampler(N, RATE, seed=None, broadcast=lambda drawn: from_rank_0)
    assert sampler.indices(0).tolist() == [4, 9]


@pytest.mark.parametrize("seed", [0, None])
def test_full_batch_and_empty_batch(seed: int | None) -> None:
    assert PoissonSampler(10, 1.0, seed).indices(0).tolist() == list(range(10))
    empty = PoissonSampler(1, 1e-9, seed).indices(0)
    assert len(empty) == 0
    assert micro_batches(empty, None, 4) == []


def test_shares_are_disjoint_and_cover_the_batch() -> None:
    indices = PoissonSampler(N, 0.5, seed=0).indices(0)
    parts = [share(indices, rank, 3) for rank in range(3)]
    assert sorted(np.concatenate(parts)) == indices.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [len(share(np.array([7]), rank, 3)) for rank in range(3)] == [1, 0, 0]


def test_micro_batches_group_records_of_similar_length() -> None:
    indices = np.array([0, 2, 3, 5, 6])
    lengths = [9, 0, 4, 9, 0, 1, 5]
    assert [piece.tolist() for piece in micro_batches(indices, lengths, 2)] == [[5, 2], [6, 0], [3]]
    assert [piece.tolist() for piece in micro_batches(indices, None, 2)] == [[0, 2], [3, 5], [6]]


def test_expected_batch_size() -> None:
    assert PoissonSampler(400, 0.16, seed=0).expected_batch_size == 64


@pytest.mark.parametrize(
    ("num_examples", "rate", "message"),
    [(0, 0.1, "empty"), (10, 0.0, "batch_size"), (10, 1.1, "batch_size"), (10, float("nan"), "batch_size")],
)
def test_bad_sizes(num_examples: int, rate: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PoissonSampler(num_examples, rate, seed=0)


def test_bad_micro_batch_size() -> None:
    with pytest.raises(UsageError, match=r"trainer\.micro_batch_size"):
        micro_batches(np.arange(3), None, 0)
