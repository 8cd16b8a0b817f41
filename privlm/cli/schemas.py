"""Every schema that a group may have, of the core and of all tasks, and what is known of a key whatever is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from privlm import config, registry
from privlm.schema import Rule, field_at
from privlm.sweeps.schema import SlurmConfig, SweepConfig

SCHEMAS_OF_SWEEPS: dict[str, dict[str, type]] = {"sweep": {"sweep": SweepConfig}, "launcher": {"slurm": SlurmConfig}}


def schemas() -> dict[str, dict[str, type]]:
    """Group -> name -> schema, of the core, of sweeps, of the tasks and of what they add to any group."""
    found = {group: dict(by_name) for group, by_name in {**config.SCHEMAS, **SCHEMAS_OF_SWEEPS}.items()}
    for task in registry.tasks().values():
        module = task.config_module()
        for group, by_name in [("task", {task.name: module.Task}), *getattr(module, "SCHEMAS", {}).items()]:
            found.setdefault(group, {}).update(by_name)
    return found


def is_key(key: str) -> bool:
    """Whether some run has the dotted `key`."""
    return any(True for _ in _rules(key))


def options_of(key: str) -> list[str]:
    """The names that the field at the dotted `key` takes, in whatever schema its group may have; none for others."""
    return sorted({option for rule in _rules(key) for option in rule.options})


def stood_in_for(key: str) -> list[str]:
    """The dotted keys that the one at `key` is given instead of (trainer.steps instead of trainer.epochs)."""
    return _siblings(key, (rule.instead_of for rule in _rules(key)))


def not_with(key: str) -> list[str]:
    """The dotted keys that cannot be given together with the one at `key`."""
    return _siblings(key, (rule.not_with for rule in _rules(key)))


def _siblings(key: str, found: Iterable[tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(f"{key.rpartition('.')[0]}.{name}" for names in found for name in names))


def _rules(key: str) -> Iterator[Rule]:
    group, _, path = key.partition(".")
    candidates = schemas().get(group, {}).values() if path else [config.Config]
    for schema in candidates:
        if (rule := field_at(schema, (path or key).split("."))) is not None:
            yield rule
