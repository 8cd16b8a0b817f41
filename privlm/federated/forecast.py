"""What the rounds of a federation would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from privlm.federated.sampling import sampled
from privlm.federated.schema import TRAINED_TWICE, WIRE_BYTES
from privlm.job import stage_seed
from privlm.privacy.client_plans import make_client_plans
from privlm.privacy.plan import make_plan
from privlm.privacy.schema import is_private, is_private_by_client
from privlm.training.batches import num_steps

MEGABYTE = 1e6


def rounds(config: Any, sizes: Mapping[str, int], *, num_sent: int | None, stage: str = "train") -> dict[str, Any]:
    """sizes: client -> its rows. num_sent: numbers that a client sends, None where that is not known.

    Whom a round asks is drawn as the stage of this name will draw it; under privacy by client, whose draw is a secret,
    as many as are to be expected.
    """
    federated, trainer = config.federated, config.trainer
    asked = times_asked(config, list(sizes), stage_seed(config.seed, stage))
    replies = sum(asked.values())
    steps = sum(times * steps_of_round(config, sizes[client]) for client, times in asked.items())
    return {
        "clients": len(sizes),
        "rounds": federated.rounds,
        "replies": replies,
        "steps": steps,
        **{name: trainer[name] for name in ("batch_size", "epochs", "optimizer", "learning_rate", "schedule")},
        "max_length": config.model.max_length,
        "upload_per_reply": None if num_sent is None else num_sent * WIRE_BYTES[federated.wire] / MEGABYTE,
        **_privacy(config, sizes, asked),
    }


def times_asked(config: Any, clients: list[str], seed: int) -> Counter[str]:
    """In how many rounds each client takes part."""
    federated, found = config.federated, Counter[str]()
    if is_private_by_client(config):
        return Counter(dict.fromkeys(clients, round(federated.fraction * federated.rounds)))
    for number in range(federated.rounds):
        found.update(sampled(clients, federated.fraction, number, seed, federated.sampling))
    return found


def steps_of_round(config: Any, num_rows: int) -> int:
    """Of a client; the personal part of a strategy included."""
    steps = num_steps(config.trainer, num_rows)
    return steps + (config.federated.personal_steps or steps) if config.federated.name in TRAINED_TWICE else steps


def _privacy(config: Any, sizes: Mapping[str, int], asked: Mapping[str, int]) -> dict[str, Any]:
    if not is_private(config):
        return {"epsilon": None}
    federated = config.federated
    if is_private_by_client(config):
        plan = make_plan(
            config.privacy,
            dataset_size=len(sizes),
            batch_size=federated.fraction * len(sizes),
            steps=federated.rounds,
            unit="client",
            mechanism="dp_fedavg",
        )
        return {"unit": "client", "noise_multiplier": plan.noise_multiplier, "epsilon": plan.epsilon}
    steps = {client: times * steps_of_round(config, sizes[client]) for client, times in asked.items() if times}
    plans = make_client_plans(
        config.privacy,
        sizes={client: sizes[client] for client in steps},
        batch_size=config.trainer.batch_size,
        steps=steps,
        are_disjoint=True,  # the run looks at the records
    )
    noises = [plan.noise_multiplier for plan in plans.values()]
    return {
        "unit": "record",
        "noise_multiplier_min": min(noises),
        "noise_multiplier_max": max(noises),
        "epsilon": max(plan.epsilon for plan in plans.values()),
    }
