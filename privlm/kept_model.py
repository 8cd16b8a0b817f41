"""The model that a stage has trained, as a folder of its run: written whole, known by its digests, proved by reading.

Beside its files lies training.json: how the training ended, what it was planned to cost, and the digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privlm import files, reload_proof
from privlm.errors import UsageError
from privlm.models.loaded import Loaded
from privlm.reload_proof import Proof, ProofLosses
from privlm.rundir import TRAINING
from privlm.training.evaluation import Evaluation
from privlm.training.trainer import Outcome


def save_model(loaded: Loaded, folder: Path, *, outcome: Mapping[str, Any], price: Mapping[str, Any]) -> None:
    """Writes what training has changed of `loaded.model` into `folder`, all of it or nothing.

    outcome, price: entries of training.json (JSON); price holds `plan`, null without privacy.
    """

    def fill(temporary: Path) -> None:
        loaded.save(loaded.model, temporary)
        digests = files.digests_of(temporary)
        files.write_json(temporary / TRAINING, {"outcome": dict(outcome), **price, "files": digests})

    files.write_directory(folder, fill)


def load_model(loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Puts the model that `save_model` wrote into `loaded.model`; returns training.json.

    Raises UsageError where a file is absent or has changed since it was saved, or belongs to another model.
    """
    kept = files.read_json(folder / TRAINING)
    if kept is None:
        raise UsageError(f"{folder} holds no trained model: there is no {TRAINING}")
    for name, digest in kept["files"].items():
        path = folder / name
        if not path.is_file() or files.sha256_file(path) != digest:
            raise UsageError(f"{path} is absent or has changed since it was saved: make the run again, with --force")
    loaded.load(loaded.model, folder)
    return kept


def prove(
    loaded: Loaded,
    folder: Path,
    losses: ProofLosses,
    outcome: Outcome | None = None,
    evaluation: Evaluation | None = None,
) -> Proof:
    """The reload proof (privlm.reload_proof) of what lies in `folder`; the model it makes is gone afterwards.

    outcome: of a training that may have chosen its best step by `evaluation`.
    """
    device = next(loaded.model.parameters()).device
    again = loaded.fresh()
    again.model.to(device)
    moved = reload_proof.distance(loaded.model, again.model)
    load_model(again, folder)
    num_tensors = reload_proof.compare_states(loaded.model, again.model)
    reload_proof.compare_losses(loaded.model, again.model, losses)
    if outcome is not None and outcome.best is not None and outcome.best_step is not None and evaluation is not None:
        reload_proof.compare_evaluation(evaluation.function(again.model), outcome.best, outcome.best_step)
    return Proof(num_tensors, moved)
