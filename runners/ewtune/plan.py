"""What a run of EW-Tune would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm.adapters.estimate import estimate_parameters, held_in_memory
from privlm.config import Config, is_private
from privlm.data.text_classification import load, marks
from privlm.models.architecture import read_architecture
from privlm.models.locate import locate_model
from privlm.privacy.plan import make_plan
from privlm.training.batches import num_steps
from privlm.training.memory import encoder_activations, peak_memory

from .config import FEATURE_BATCH


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    data = load(config.data)
    steps = num_steps(config.trainer, len(data.train))
    return {
        "training_examples": len(data.train),
        "steps": steps,
        "batch_size": config.trainer.batch_size,
        **(_privacy(config, len(data.train), steps) if is_private(config) else {"epsilon": None}),
        **_size(config, len(data.labels)),
        "marks": marks(data, config.data, config.model.pretrained_on),
    }


def _privacy(config: Config, dataset_size: int, steps: int) -> dict[str, Any]:
    private = make_plan(config.privacy, dataset_size=dataset_size, batch_size=config.trainer.batch_size, steps=steps)
    by_accountant = {f"noise_multiplier_{name}": value for name, value in private.noise_multipliers.items()}
    return {
        "sampling_rate": private.sampling_rate,
        "delta": private.delta,
        "noise_multiplier": private.noise_multiplier,
        **by_accountant,
        "epsilon": private.epsilon,
        "epsilon_edgeworth": private.estimates["edgeworth"],
        "saving_vs_rdp": private.saving_vs_rdp,
        "warnings": list(private.warnings),
    }


def _size(config: Config, num_labels: int) -> dict[str, int | None]:
    """Exact parameter counts and a memory estimate, None for an architecture whose shapes are not known."""
    files = locate_model(config.model)
    parameters = estimate_parameters(config.model, files, config.adapter, num_labels)
    if parameters is None:
        return {"trainable_parameters": None, "parameters": None, "peak_memory_bytes": None}
    held = held_in_memory(config.model, files, config.adapter, parameters)
    only_features = config.adapter.name == "head"  # the encoder's; the head's own activations are nothing beside them
    activations = encoder_activations(
        read_architecture(config.model, files),
        adapter=config.adapter.name,
        num_examples=FEATURE_BATCH if only_features else config.trainer.micro_batch_size,
        length=config.model.max_length,
        dropout=config.model.dropout != 0,
        private=is_private(config),
    )
    return {
        "trainable_parameters": parameters.trainable,
        "parameters": parameters.total,
        "peak_memory_bytes": peak_memory(held, config.trainer, activations),
    }
