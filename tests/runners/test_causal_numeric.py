"""Data-driven baselines: known directions, seeded swaps, the time box; PC with knowledge on simulated data."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from privlm import registry
from privlm.errors import UsageError

registry.runners_dir()  # makes privlm.runners importable in a plain checkout

from privlm.runners.causal import discovery, graphs, neuropathic, numeric  # noqa: E402
from privlm.runners.causal.numeric import NumericPair  # noqa: E402
from privlm.runners.causal.sources import Sources  # noqa: E402
from privlm.runners.causal.suite import Grading, Reply, Settings  # noqa: E402

pytestmark = pytest.mark.torch_free


def collection(folder: Path, *pairs: tuple[np.ndarray, np.ndarray]) -> Sources:
    """A folder of numeric pairs, all of them A -> B."""
    folder.mkdir(exist_ok=True)
    columns = [[" ".join(map(str, values)) for values in pair] for pair in pairs]
    lines = [f"pair{number},{a},{b}\n" for number, (a, b) in enumerate(columns)]
    (folder / "Tuebingen_pairs.csv").write_text("SampleID,A,B\n" + "".join(lines))
    targets = "".join(f"pair{number},1.0\n" for number in range(len(pairs)))
    (folder / "Tuebingen_targets.csv").write_text("SampleID,Target\n" + targets)
    return Sources(str(folder))


def additive(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A cause and its effect by a cubic with uniform noise: identifiable by an additive noise model."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x, x**3 + x + rng.uniform(-0.3, 0.3, n)


def deterministic(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """A uniform cause and its effect by a smooth invertible function: what IGCI is made for."""
    x = np.random.default_rng(seed).uniform(0, 1, n)
    return x, np.exp(3 * x)


def run(sources: Sources, *methods: str, seed: int = 0, seconds: float = 60.0, **settings: int) -> dict[str, float]:
    rows = numeric.results(
        numeric.read_pairs(sources, seed), list(methods), seed=seed, seconds=seconds, **({"max_points": 100} | settings)
    )
    return {row.metric: row.value for row in rows}


def test_known_directions_are_found_whatever_the_swaps(tmp_path: Path) -> None:
    sources = collection(tmp_path / "igci", *(deterministic(seed) for seed in range(12)))
    pairs = numeric.read_pairs(sources, 0)
    assert {pair.forward for pair in pairs} == {True, False}
    for seed in (0, 1):
        found = run(sources, "igci", "reci", seed=seed, max_points=300)
        assert (found["igci_accuracy"], found["igci_decided"]) == (1, 1)
        assert found == run(sources, "igci", "reci", seed=seed, max_points=300)


def test_a_constant_predictor_scores_no_better_than_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always = {"igci": lambda x, y, seed: numeric.Decision(1.0, True)}
    monkeypatch.setattr(numeric, "METHODS", always)
    found = run(collection(tmp_path / "pairs", *(deterministic(seed, 20) for seed in range(60))), "igci")
    assert 0.3 < found["igci_accuracy"] < 0.7


def test_additive_noise_model(tmp_path: Path) -> None:
    pytest.importorskip("causallearn", reason="the extra llm is not installed")
    found = run(collection(tmp_path / "pairs", *(additive(seed) for seed in range(3))), "anm", max_points=80)
    assert found["anm_accuracy"] == 1
    assert found["anm_decided"] > 0


def test_pairs_out_of_time_are_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)  # a second for each look at it
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    found = run(collection(tmp_path / "pairs", *(deterministic(seed) for seed in range(10))), "igci", seconds=4.5)
    assert found["igci_decided"] == pytest.approx(0.3)
    assert found["igci_accuracy"] == pytest.approx(0.3 + 0.7 * 0.5)
    assert found["igci_accuracy_decided"] == 1


def test_constant_samples_have_no_direction() -> None:
    pair = NumericPair("p", np.ones(10), np.ones(10), True)
    for name in ("igci", "reci"):
        assert not numeric._decide(numeric.METHODS[name], pair, 0, 100).decided


@pytest.mark.parametrize(("a", "b"), [("1 2 x", "1 2 3"), ("1 2", "1 2 3"), ("1 nan 3", "1 2 3")])
def test_broken_samples_name_their_pair(tmp_path: Path, a: str, b: str) -> None:
    collection(tmp_path)
    (tmp_path / "Tuebingen_pairs.csv").write_text(f"SampleID,A,B\npair7,{a},{b}\n")
    (tmp_path / "Tuebingen_targets.csv").write_text("SampleID,Target\npair7,1.0\n")
    with pytest.raises(UsageError, match="pair7 has"):
        numeric.read_pairs(Sources(str(tmp_path)), 0)


# --- discovery ------------------------------------------------------------------------------------------------------


def test_knowledge_turns_what_pc_leaves_open() -> None:
    pytest.importorskip("causallearn", reason="the extra llm is not installed")
    links = neuropathic.read_links(Sources(None))
    suite = neuropathic.load_pairs(Sources(None), 0)
    replies = [Reply(item, item.question, 0, f"<Answer>{item.question.truth}</Answer>", "ok") for item in suite.items]
    right = Grading(suite, replies, [], Settings("strict", "strict"))
    found = discovery.discover(links, right, num_nodes=6, num_samples=400, alpha=0.01, seed=0)
    assert len(found.names) == 6
    assert "SIMULATED" in found.note
    assert not (found.graphs["pc_llm"] & found.truth.T).any()  # no link against the direction that was given
    distance = {name: graphs.pair_counts(found.truth, graph).sum(0)[4] for name, graph in found.graphs.items()}
    assert distance["pc_llm"] <= distance["pc"]


def test_simulated_data_follow_the_graph() -> None:
    chain = graphs.from_edges(["a", "b", "c"], [("a", "b"), ("b", "c")])
    a, b, c = discovery.simulate(chain, 20_000, seed=3).T
    assert np.var(a) == pytest.approx(1, abs=0.05)
    slope, residual = np.polyfit(b, c, 1)[0], c - np.polyfit(b, c, 1)[0] * b
    assert 0.5 <= abs(slope) <= 1.5
    assert abs(np.corrcoef(residual, a)[0, 1]) < 0.03
