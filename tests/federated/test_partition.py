"""Partitions: every row once, one partition a seed, the sizes and mixtures that were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privlm.errors import UsageError
from privlm.federated.partition import PARTITIONS, Parts, manifest, partition, read_allocation

pytestmark = pytest.mark.torch_free

few = settings(max_examples=40, deadline=None, derandomize=True)
labels_of_rows = st.lists(st.sampled_from(["brainstorming", "closed_qa", "open_qa"]), min_size=12, max_size=120)


def deal(kind: str, labels: list[Any], num_clients: int | None, seed: int = 0, **changes: Any) -> Parts:
    options: dict[str, Any] = {"alpha": 0.5, "min_size": 1, "shards_per_client": 2, "columns": None} | changes
    return partition(kind, labels, options.pop("columns"), len(labels), num_clients, seed, **options)


def sizes(parts: Parts) -> list[int]:
    return [len(rows) for rows in parts.values()]


def refused(message: str, of: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=message):
        of()


@few
@given(labels=labels_of_rows, num_clients=st.integers(1, 6), seed=st.integers(0, 2**40))
@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet"])
def test_every_row_is_with_one_client_and_a_seed_gives_one_partition(
    kind: str, labels: list[str], num_clients: int, seed: int
) -> None:
    parts = deal(kind, labels, num_clients, seed)
    assert list(parts) == [str(client) for client in range(num_clients)]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(labels)))
    for rows in parts.values():
        assert rows.dtype == np.int64
        assert len(rows) >= 1
        assert (np.diff(rows) > 0).all()
    np.testing.assert_equal(deal(kind, labels, num_clients, seed), parts)


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet"])
def test_another_seed_gives_another_partition(kind: str) -> None:
    labels = list("aabbccdd") * 10
    digests = {manifest(deal(kind, labels, 4, seed), None)["digest"] for seed in range(10)}
    assert len(digests) == 10


@few
@given(labels=labels_of_rows, num_clients=st.integers(1, 6))
@pytest.mark.parametrize("kind", ["iid", "shards"])
def test_sizes_differ_by_one_row_at_most(kind: str, labels: list[str], num_clients: int) -> None:
    found = sizes(deal(kind, labels, num_clients))
    assert max(found) - min(found) <= 1


def test_shards_are_runs_of_the_rows_sorted_by_label() -> None:
    labels = [number % 10 for number in range(400)]
    parts = deal("shards", labels, 20)
    kinds = [len({labels[row] for row in rows}) for rows in parts.values()]
    assert max(kinds) <= 2  # 40 shards of 10 rows, 40 rows of each label: no shard holds two labels
    assert np.mean(kinds) > 1
    assert len({tuple(sorted({labels[row] for row in rows})) for rows in parts.values()}) > 8


def test_rows_of_one_label_are_mixed_before_they_are_cut() -> None:
    parts = deal("shards", ["a"] * 100, 2, shards_per_client=1)
    assert not np.array_equal(parts["0"], np.arange(50))
    assert not np.array_equal(parts["0"], np.arange(50, 100))


def test_a_small_alpha_makes_clients_one_sided_and_a_large_one_even() -> None:
    labels = [number % 5 for number in range(2000)]

    def imbalance(alpha: float) -> float:
        """Mean over clients of the largest share of a label."""
        parts = deal("dirichlet", labels, 8, alpha=alpha)
        counts = [np.bincount([labels[row] for row in rows], minlength=5) / len(rows) for rows in parts.values()]
        return float(np.mean([count.max() for count in counts]))

    assert imbalance(1000) == pytest.approx(0.2, abs=0.05)
    assert imbalance(0.1) > 0.5


def test_proportions_of_the_first_label_are_dirichlet() -> None:
    """Over seeds: mean 1/C and variance (1/C)(1 - 1/C) / (C alpha + 1)."""
    labels, alpha = ["only"] * 400, 2.0
    shares = np.array([sizes(deal("dirichlet", labels, 4, seed, alpha=alpha)) for seed in range(1500)]) / 400
    assert shares.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.015)
    assert shares.var(0) == pytest.approx(np.full(4, 0.25 * 0.75 / (4 * alpha + 1)), rel=0.15)


@few
@given(seed=st.integers(0, 2**40), alpha=st.sampled_from([0.01, 0.1, 1.0]))
def test_a_client_that_is_full_takes_none_of_the_labels_that_follow(seed: int, alpha: float) -> None:
    labels = [0] * 60 + [1] * 60 + [2] * 60
    counts = [
        np.bincount(np.array(labels)[rows], minlength=3)
        for rows in deal("dirichlet", labels, 3, seed, alpha=alpha).values()
    ]
    for count in counts:
        for label in (1, 2):
            if count[:label].sum() >= 60:
                assert count[label] == 0


@few
@given(seed=st.integers(0, 2**40))
def test_dirichlet_keeps_its_least_size(seed: int) -> None:
    assert min(sizes(deal("dirichlet", list("aaabbbcc") * 12, 4, seed, min_size=8))) >= 8


def test_a_column_names_the_clients_in_the_order_of_its_values() -> None:
    parts = partition("by_column", None, [10, 2, 10, 1, 2], 5, None, 0)
    assert {client: rows.tolist() for client, rows in parts.items()} == {"1": [3], "2": [1, 4], "10": [0, 2]}
    assert list(parts) == ["1", "2", "10"]
    assert list(partition("by_column", None, ["b", "a", "b"], 3, 2, 0)) == ["a", "b"]


def test_an_explicit_allocation_is_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    path.write_text('{"hospital": [4, 0, 2], "practice": [1, 3]}')
    parts = partition("explicit", None, None, 5, 2, 0, allocation=read_allocation(path))
    assert {client: rows.tolist() for client, rows in parts.items()} == {"hospital": [0, 2, 4], "practice": [1, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [0], "a": [1]}', "two clients are called 'a'"),
        ("[[0], [1]]", "it must be an object like"),
        ("{}", "it must be an object like"),
        ('{"a": [true]}', "it must be an object like"),
        ('{"a": 3}', "it must be an object like"),
        ('{"a": [0', "the file is no JSON"),
    ],
)
def test_files_that_are_no_allocation_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "clients.json"
    path.write_text(content)
    refused(message, lambda: read_allocation(path))
    refused("cannot be read", lambda: read_allocation(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ({"a": [0, 1], "b": []}, "client 'b' has no rows"),
        ({"a": [0, 1], "b": [1, 2]}, "row 1 is with 'a' and with 'b'"),
        ({"a": [0, 0], "b": [1, 2]}, "row 0 is with 'a' and with 'a'"),
        ({"a": [0, 1, 3]}, "client 'a' has row 3 of rows 0 to 2"),
        ({"a": [-1, 1, 2]}, "client 'a' has row -1"),
        ({"a": [1]}, "2 of 3 rows are with no client, row 0 first"),
    ],
)
def test_allocations_that_lose_or_double_rows_are_refused(allocation: dict[str, list[int]], message: str) -> None:
    refused(message, lambda: partition("explicit", None, None, 3, None, 0, allocation=allocation))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("iid", {"num_clients": 9}, r"federated\.num_clients=9: there are 8 rows"),
        ("iid", {"num_clients": 0}, r"federated\.num_clients=0"),
        ("iid", {"num_clients": None}, r"federated\.partition=iid needs federated\.num_clients"),
        ("shards", {"shards_per_client": 3}, r"federated\.shards_per_client=3: .* 9 shards"),
        ("shards", {"shards_per_client": 0}, r"federated\.shards_per_client=0"),
        ("shards", {"shards_per_client": None}, r"needs federated\.shards_per_client"),
        ("shards", {"labels": ["a"] * 7 + [None]}, "row 7 has no label"),
        ("dirichlet", {"min_size": 3}, r"federated\.min_size=3: .* between 1 and 2"),
        ("dirichlet", {"min_size": 0}, r"federated\.min_size=0"),
        ("dirichlet", {"alpha": 0.0}, r"federated\.alpha=0\.0"),
        ("dirichlet", {"alpha": None}, r"needs federated\.alpha"),
        ("by_column", {}, r"needs a column client"),
        ("by_column", {"columns": ["a"] * 7 + [None]}, r"data\.aliases: row 7 names no client"),
        ("by_column", {"columns": [1] * 7 + ["1"]}, "two clients are called '1'"),
        ("by_column", {"columns": list("aaaabbbb")}, r"federated\.num_clients=3, .* has 2 clients"),
        ("explicit", {}, r"needs federated\.manifest"),
        ("iid", {"labels": []}, "no rows to deal out"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_by_name(kind: str, changes: dict[str, Any], message: str) -> None:
    changes = {"labels": list("abababab"), "num_clients": 3} | changes
    refused(message, lambda: deal(kind, **changes))


def test_draws_that_never_fit_are_given_up_naming_the_least_size() -> None:
    refused(
        r"federated\.min_size=20: none of 1000 draws with federated\.alpha=0\.01",
        lambda: deal("dirichlet", ["a"] * 100, 5, alpha=0.01, min_size=20),
    )


def test_shards_and_dirichlet_need_labels() -> None:
    for kind in ("shards", "dirichlet"):
        refused(
            f"federated.partition={kind} needs a column of labels",
            lambda kind=kind: partition(kind, None, None, 8, 2, 0, alpha=1.0, min_size=1, shards_per_client=1),
        )


def test_the_manifest_counts_categories_and_names_the_partition() -> None:
    labels = ["qa", "summary", "qa", "qa"]
    parts = partition("explicit", None, None, 4, None, 0, allocation={"b": [0, 1], "a": [2, 3]})
    found = manifest(parts, labels)
    assert found["clients"] == {
        "b": {"rows": 2, "categories": {"qa": 1, "summary": 1}},
        "a": {"rows": 2, "categories": {"qa": 2}},
    }
    assert json.loads(json.dumps(found)) == found
    swapped = partition("explicit", None, None, 4, None, 0, allocation={"b": [2, 1], "a": [0, 3]})
    assert manifest(swapped, labels)["digest"] != found["digest"]


def test_ten_clients_and_more_keep_their_names_and_order() -> None:
    assert list(deal("iid", list(range(12)), 12)) == [str(client) for client in range(12)]


def test_the_global_generator_is_untouched() -> None:
    before = np.random.get_state()
    for kind in ("iid", "shards", "dirichlet"):
        deal(kind, list("abcdabcd"), 2)
    np.testing.assert_equal(np.random.get_state(), before)


def test_every_partition_of_the_list_is_served() -> None:
    for kind in PARTITIONS:
        parts = deal(
            kind, list("aabb"), 2, shards_per_client=1, columns=list("xyxy"), allocation={"x": [0, 1], "y": [2, 3]}
        )
        assert sum(sizes(parts)) == 4
