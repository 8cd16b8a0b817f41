"""Every schema that a group may have, of the core and of all tasks, and what is known of a key whatever is chosen."""

from __future__ import annotations

from collections.abc import Iterator

from privlm import config, registry
from privlm.schema import Rule, field_at


def schemas() -> dict[str, dict[str, type]]:
    """Group -> name -> schema, of the core, of the tasks and of what they add to any group."""
    found = {group: dict(by_name) for group, by_name in config.SCHEMAS.items()}
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


def stood_in_for(key: str) -> str | None:
    """The dotted key that the one at `key` is given instead of (trainer.steps instead of trainer.epochs), or None."""
    other = next((rule.instead_of for rule in _rules(key) if rule.instead_of), None)
    return None if other is None else f"{key.rpartition('.')[0]}.{other}"


def _rules(key: str) -> Iterator[Rule]:
    group, _, path = key.partition(".")
    candidates = schemas().get(group, {}).values() if path else [config.Config]
    for schema in candidates:
        if (rule := field_at(schema, (path or key).split("."))) is not None:
            yield rule
