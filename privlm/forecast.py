"""What a run would do and cost, known before it starts: what the plan.py of several tasks print. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from privlm.adapters.estimate import estimate_parameters, held_in_memory
from privlm.llm.budget import Spent
from privlm.models.architecture import read_architecture
from privlm.models.locate import locate_model
from privlm.models.schema import is_causal_lm
from privlm.privacy.plan import make_plan
from privlm.privacy.schema import is_private_by_record, refuse_by_client
from privlm.training.batches import num_steps
from privlm.training.memory import CAUSAL_LMS, causal_lm_activations, encoder_activations, peak_memory

CHARACTERS_PER_TOKEN = 4.0  # of English text
START_SECONDS = 10.0  # of imports, and of the page at the end


def training(config: Any, num_examples: int) -> dict[str, Any]:
    """Of a model that learns `num_examples`: how long, by what, and at which price in privacy."""
    trainer, steps = config.trainer, num_steps(config.trainer, num_examples)
    names = ("batch_size", "epochs", "optimizer", "learning_rate", "schedule", "warmup_steps", "warmup_share")
    return {
        "steps": steps,
        **{name: trainer[name] for name in names},
        "max_length": config.model.max_length,
        **privacy(config, dataset_size=num_examples, steps=steps),
    }


def privacy(config: Any, *, dataset_size: int, steps: int) -> dict[str, Any]:
    """The noise of a private training and its price, under the names of result.json; without privacy no epsilon."""
    refuse_by_client(config, "this trains one model")
    if not is_private_by_record(config):
        return {"epsilon": None}
    plan = make_plan(config.privacy, dataset_size=dataset_size, batch_size=config.trainer.batch_size, steps=steps)
    return {
        "sampling_rate": plan.sampling_rate,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        **{f"noise_multiplier_{accountant}": value for accountant, value in plan.noise_multipliers.items()},
        "epsilon": plan.epsilon,
        "epsilon_edgeworth": plan.estimates["edgeworth"],
        "saving_vs_rdp": plan.saving_vs_rdp,
        "warnings": list(plan.warnings),
    }


def size(config: Any, *, num_labels: int = 0, feature_batch: int | None = None) -> dict[str, int | None]:
    """Exact parameter counts and peak memory of the model that config.model describes and config.adapter trains.

    None for an architecture whose shapes are not known, or whose memory was not measured.

    num_labels: of an encoder's head; a causal language model has none.
    feature_batch: examples that pass a frozen encoder at a time where its features are cached (adapter=head).
    """
    files = locate_model(config.model)
    parameters = estimate_parameters(config.model, files, config.adapter, num_labels)
    if parameters is None:
        return {"trainable_parameters": None, "parameters": None, "peak_memory_bytes": None}
    held = held_in_memory(config.model, files, config.adapter, parameters)
    activations = _activations(config, files, feature_batch)
    return {
        "trainable_parameters": parameters.trainable,
        "parameters": parameters.total,
        "peak_memory_bytes": activations and peak_memory(held, config.trainer, activations, _value_bytes(config.model)),
    }


def _activations(config: Any, files: Any, feature_batch: int | None) -> int | None:
    """None for a causal language model of which nothing was measured."""
    architecture = read_architecture(config.model, files)
    only_features = config.adapter.name == "head" and feature_batch is not None  # those of the head are nothing beside
    sizes = {
        "adapter": config.adapter.name,
        "num_examples": feature_batch if only_features else config.trainer.micro_batch_size,
        "length": config.model.max_length,
        "private": is_private_by_record(config),
    }
    if architecture["model_type"] in CAUSAL_LMS:
        return causal_lm_activations(architecture, **sizes, value_bytes=_value_bytes(config.model))
    if is_causal_lm(config.model):
        return None
    return encoder_activations(architecture, **sizes, dropout=config.model.dropout != 0)


def _value_bytes(model: Any) -> int:
    """Of a weight; an encoder's are float32."""
    return 4 if getattr(model, "dtype", "float32") == "float32" else 2


def seconds(
    config: Any, *, num_parameters: int | None, train_tokens: float, evaluation_tokens: float, num_evaluations: int
) -> float | None:
    """About how long a run takes on the CPUs of this machine, from the floating-point operations of its products: two a
    parameter and token forwards, four backwards. A factor of two either way is to be expected; on a GPU it says how
    one run compares with another. None for an architecture whose shapes are not known.

    train_tokens: that pass the model in training, all steps together; with adapter=head, whose features are computed
    once, those of the training data. evaluation_tokens: of one evaluation.
    """
    if num_parameters is None:
        return None
    architecture = read_architecture(config.model, locate_model(config.model))
    weights = num_parameters - architecture.get("vocab_size", 0) * architecture.get("hidden_size", 0)
    is_head = config.adapter.name == "head"
    operations = 2 * weights * ((1 if is_head else 3) * train_tokens)
    operations += 2 * weights * evaluation_tokens * (1 if is_head else num_evaluations)
    return START_SECONDS + operations / _operations_per_second()


@cache
def _operations_per_second() -> float:
    """Of products of float32 matrices, with as many threads as they take; measured in some hundredths of a second."""
    import numpy as np

    side = 1024
    matrix = np.ones((side, side), np.float32)
    matrix @ matrix  # starts the threads
    start = time.perf_counter()
    matrix @ matrix
    return 2 * side**3 / (time.perf_counter() - start)


def tokens(characters: float) -> int:
    """About how many tokens a text of so many characters has."""
    return round(characters / CHARACTERS_PER_TOKEN)


def asking(by_part: Mapping[str, Spent], llm: Any = None) -> dict[str, Any]:
    """Calls of a language model by part, and the tokens and dollars of all of them together.

    by_part: prompts are estimated (`tokens`), completions counted at their full length.
    llm: the config of whoever is asked; dollars are told where it has a price.
    """
    total = sum(by_part.values(), Spent())
    price = getattr(llm, "price", None)
    known = price is not None and price.input is not None and price.output is not None
    return {
        **{f"calls_{name}": spent.calls for name, spent in by_part.items()},
        "calls": total.calls,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens_at_most": total.completion_tokens,
        **({"usd_at_most": _usd(total, price)} if known else {}),
    }


def _usd(spent: Spent, price: Any) -> float:
    return (spent.prompt_tokens * price.input + spent.completion_tokens * price.output) / 1e6
