"""Small experiments for tests, and what must be equal between two runs of the same one."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from privlm import identity

PRIVACY = {
    "mechanism": "dp_sgd",
    "unit": "example",
    "adjacency": "add_remove",
    "sampling": "poisson",
    "sampling_rate": 0.06197,
    "dataset_size": 4131,
    "expected_batch_size": 256,
    "steps": 160,
    "noise_multiplier": 1.388,
    "clipping": "flat",
    "clipping_norm": 1.0,
    "delta": 1e-5,
    "target_epsilon": 3.0,
    "epsilon": 2.998,
    "guarantee": True,
    "accountant": "pld",
    "rng": "secure",
    "repeated_releases": 0,
    "noise_set_by": "pld",
    "order": 2,
    "estimates": {"gdp": 2.9, "edgeworth": 3.18},
    "bounds": {"rdp": 3.33},
    "noise_multipliers": {"pld": 1.388, "rdp": 1.49, "gdp": 1.36, "edgeworth": 1.44},
    "flags": ["seeded_noise", "delta >= 1/N"],
}
"""privacy.json of a finished private run."""

NONSENSE = ("lorem", "ipsum", "dolor", "sit", "amet", "win", "cash", "now", "call", "free")


def write_messages(path: Path, num_messages: int = 120) -> Path:
    """A file of made-up messages in the format of the SMS Spam Collection."""
    rng = random.Random(0)
    lines = []
    for number in range(num_messages):
        label = "spam" if number % 3 == 0 else "ham"
        words = NONSENSE[5:] if label == "spam" else NONSENSE[:5]
        lines.append(f"{label}\t{' '.join(rng.choices(words, k=rng.randint(2, 9)))} {number}\n")
    path.write_text("".join(lines))
    return path


def tiny_run(messages: Path, runs: Path, *overrides: str) -> list[str]:
    """Words of a run of a second: 6 steps of a tiny model, checkpoints every 2."""
    return [
        "run",
        "task=ewtune",
        "model=tiny",
        f"data.path={messages}",
        f"runs={runs}",
        "trainer.steps=6",
        "trainer.batch_size=16",
        "trainer.checkpoint_every=2",
        "trainer.evaluate_every=2",
        "privacy.epsilon=null",
        "privacy.noise_multiplier=1.0",
        "privacy.delta=1e-3",
        *overrides,
    ]


def cell_of(cell: str) -> str:
    """The cell hash of the runs that the fixture `make_run` writes for `cell`."""
    return identity.cell_hash({"task": {"name": "ewtune"}, "cell": cell}, identity.Roles())


def only_run(runs: Path) -> Path:
    """The one run directory below `runs`."""
    (directory,) = (runs / "ewtune").iterdir()
    return directory


def outcome(directory: Path) -> dict[str, Any]:
    """What a resumed run must share with the uninterrupted one: weights, metrics, privacy, results."""
    weights = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((directory / "stages").rglob("model/**/*.safetensors"))
    }
    assert weights
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    metrics = [row for row in rows if row["split"] != "run"]  # speed and memory are of each run alone
    for row in metrics:
        del row["time"]
    result = json.loads((directory / "result.json").read_text())
    privacy = json.loads((directory / "privacy.json").read_text())
    return {
        "weights": weights,
        "metrics": metrics,
        "rows": result["rows"],
        "status": result["status"],
        "epsilon": privacy.get("epsilon"),
        "steps": privacy.get("steps"),
    }
