"""The checks of meaning that types cannot express.

`check` collects every problem of a composed configuration, so that a user mends them in one go; a runner's own
`check` uses the same helpers. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from privlm.config import CHOICES, is_private
from privlm.errors import UsageError


def check(config: Any) -> list[str]:
    """Every problem of meaning in the core groups, one sentence each that names the field and the remedy."""
    return [
        *_choices(config),
        *_check_trainer(config.trainer),
        *(_check_privacy(config.privacy, config.trainer) if is_private(config) else []),
        *_check_audit(config.privacy.audit),
        *_check_model(config),
        *(_check_llm(config.llm) if config.llm is not None else []),
    ]


def one_of(field: str, value: str, options: Iterable[str]) -> list[str]:
    """A problem if `value` is not one of `options`, with the nearest spelling."""
    options = list(options)
    if value in options:
        return []
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return [f"{field}: '{value}' is not one of {', '.join(options)}{hint}"]


def positive(field: str, value: float | None) -> list[str]:
    """A problem if `value` is given and not a finite number above zero."""
    if value is None or (math.isfinite(value) and value > 0):
        return []
    return [f"{field} must be greater than 0, not {value}"]


def not_negative(field: str, value: float | None) -> list[str]:
    if value is None or (math.isfinite(value) and value >= 0):
        return []
    return [f"{field} must not be negative or infinite: {value}"]


def require_packages(by: str, *distributions: str, extra: str) -> None:
    """Raises UsageError naming what an optional part needs and how to install it. by: the words that ask for it."""
    absent = [name for name in distributions if find_spec(name.replace("-", "")) is None]
    if absent:
        raise UsageError(f"{by} needs {' and '.join(absent)}: pip install 'privlm[{extra}]'")


def all_found(*parts: Callable[[], Mapping[str, str] | None]) -> dict[str, str]:
    """What a runner's `inputs` returns: the fingerprints that the parts find, together; some only look.

    Raises UsageError with the messages of all parts that do not find theirs.
    """
    found: dict[str, str] = {}
    missing = []
    for part in parts:
        try:
            found |= part() or {}
        except UsageError as error:
            missing.append(str(error))
    if missing:
        raise UsageError("\n".join(missing))
    return found


def _choices(config: Any) -> list[str]:
    problems = []
    for field, options in CHOICES.items():
        group, _, key = field.partition(".")
        value = config.get(group) if not key else (config.get(group) or {}).get(key)
        if value is not None:
            problems += one_of(field, value, options)
    return problems


def _check_trainer(trainer: Any) -> list[str]:
    problems = []
    for key in ("batch_size", "micro_batch_size", "steps", "epochs", "processes", "keep_checkpoints"):
        problems += positive(f"trainer.{key}", trainer[key])
    for key in ("log_every", "evaluate_every", "checkpoint_every"):
        problems += not_negative(f"trainer.{key}", trainer[key])
    problems += positive("trainer.learning_rate", trainer.learning_rate)
    for name, rate in trainer.learning_rates.items():
        problems += positive(f"trainer.learning_rates.{name}", rate)
    problems += positive("trainer.max_grad_norm", trainer.max_grad_norm)
    problems += positive("trainer.early_stop_patience", trainer.early_stop_patience)
    for key in ("momentum", "weight_decay", "warmup_steps"):
        problems += not_negative(f"trainer.{key}", trainer[key])
    if (trainer.steps is None) == (trainer.epochs is None):
        problems.append("trainer.steps, trainer.epochs: give one of the two and set the other to null")
    if trainer.early_stop_patience is not None and not trainer.evaluate_every:
        problems.append("trainer.early_stop_patience needs trainer.evaluate_every above 0")
    if trainer.name == "single" and trainer.processes != 1:
        problems.append(f"trainer.processes={trainer.processes} needs trainer=ddp (trainer=single is one process)")
    return problems


def _check_privacy(privacy: Any, trainer: Any) -> list[str]:
    problems = []
    if (privacy.epsilon is None) == (privacy.noise_multiplier is None):
        problems.append(
            "privacy.epsilon, privacy.noise_multiplier: give one of the two (the other is computed) "
            "and set the other to null"
        )
    if privacy.epsilon is not None and math.isinf(privacy.epsilon):
        problems.append("privacy.epsilon=inf promises nothing: use privacy=none")
    else:
        problems += positive("privacy.epsilon", privacy.epsilon)
    problems += positive("privacy.noise_multiplier", privacy.noise_multiplier)
    problems += positive("privacy.clipping_norm", privacy.clipping_norm)
    problems += _check_delta(privacy.delta)
    if privacy.order not in (0, 1, 2, 3):
        problems.append(f"privacy.order must be 0, 1, 2 or 3, not {privacy.order}")
    if trainer.max_grad_norm is not None:
        problems.append("trainer.max_grad_norm has no place under privacy: set privacy.clipping_norm instead")
    return problems


def _check_audit(audit: Any) -> list[str]:
    problems = one_of("privacy.audit.canaries", audit.canaries, ("none", "dirac", "mislabel", "random_tokens"))
    if audit.num_canaries < 10:
        problems.append(f"privacy.audit.num_canaries must be at least 10, not {audit.num_canaries}")
    if min(audit.guesses_in, audit.guesses_out) < 0 or audit.guesses_in + audit.guesses_out > audit.num_canaries:
        problems.append(
            f"privacy.audit.guesses_in={audit.guesses_in}, guesses_out={audit.guesses_out}: together at most "
            f"num_canaries={audit.num_canaries}, none negative"
        )
    if not 0 < audit.confidence < 1:
        problems.append(f"privacy.audit.confidence must lie between 0 and 1, not {audit.confidence}")
    return problems


def _check_delta(delta: Any) -> list[str]:
    if delta == "1/2N":
        return []
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        return [f"privacy.delta must be a number between 0 and 1, or 1/2N, not {delta!r}"]
    return []


def _check_model(config: Any) -> list[str]:
    model, adapter = config.model, config.adapter
    problems = []
    if model is not None and "max_length" in model:
        problems += positive("model.max_length", model.max_length)
    if adapter is not None and "rank" in adapter:
        problems += positive("adapter.rank", adapter.rank)
        problems += positive("adapter.power_iterations", adapter.power_iterations)
    return problems


def _check_llm(llm: Any) -> list[str]:
    problems = []
    for key, value in llm.budget.items():
        problems += not_negative(f"llm.budget.{key}", value)
    for key in ("context_length", "batch_tokens", "rpm", "tpm"):
        problems += positive(f"llm.{key}", llm.get(key))
    if llm.budget.usd is not None and (llm.backend != "endpoint" or None in (llm.price.input, llm.price.output)):
        problems.append(
            "llm.budget.usd needs llm.price.input and llm.price.output of a server: without them no cost is known"
        )
    if llm.backend == "replay" and llm.path is None:
        problems.append("llm.path: name the file of recorded answers, llm.path=FILE.jsonl")
    if llm.backend == "endpoint":
        problems += _check_server(llm)
        if not 1 <= llm.concurrency <= 64:
            problems.append(f"llm.concurrency must lie between 1 and 64, not {llm.concurrency}")
        for field in ("timeout.connect", "timeout.read", "retry.max_attempts", "retry.max_wait"):
            group, _, key = field.partition(".")
            problems += positive(f"llm.{field}", llm[group][key])
        for key in ("input", "output"):
            problems += not_negative(f"llm.price.{key}", llm.price[key])
    return problems


def _check_server(llm: Any) -> list[str]:
    problems = []
    if llm.model is None:
        problems.append("llm.model: name the model that the server serves, llm.model=NAME")
    if llm.base_url is None:
        problems.append("llm.base_url: give the address of the server, llm.base_url=http://HOST:PORT/v1")
    elif not re.match(r"https?://[^/]", llm.base_url):
        problems.append(f"llm.base_url must begin with http:// or https://, not {llm.base_url}")
    elif "@" in urlsplit(llm.base_url).netloc:
        problems.append("llm.base_url holds a name or password, which would be written down: use llm.api_key_env")
    if llm.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", llm.api_key_env):
        problems.append("llm.api_key_env must be the name of an environment variable, not the key itself")
    if llm.score != "none" and llm.api != "completions":
        problems.append(f"llm.score={llm.score} needs llm.api=completions: chat cannot score given text")
    return problems
