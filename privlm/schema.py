"""What every schema of a config group is made of: fields that carry their rules, and the one walker that reads them.

Imports nothing heavy and nothing of Hydra.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from privlm.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """What a field asks of its value, and its role in the hashes (privlm.identity)."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    options: tuple[str, ...] = ()
    same_cell: bool = False
    same_run: bool = False
    instead_of: tuple[str, ...] = ()
    not_with: tuple[str, ...] = ()

    def problems(self, name: str, value: Any) -> list[str]:
        """What is wrong with `value`, with an element of a list or with a value of a mapping; null is always right."""
        if isinstance(value, ListConfig):
            return [problem for element in value for problem in self.problems(name, element)]
        if isinstance(value, DictConfig):
            return [problem for key, element in value.items() for problem in self.problems(f"{name}.{key!s}", element)]
        if value is None:
            return []
        return one_of(name, value, self.options) if self.options else self._bounds(name, value)

    def _bounds(self, name: str, value: Any) -> list[str]:
        asked: list[tuple[str, float | None, Callable[[float, float], bool]]] = [
            ("greater than", self.above, operator.gt),
            ("at least", self.at_least, operator.ge),
            ("less than", self.below, operator.lt),
            ("at most", self.at_most, operator.le),
        ]
        bounds = [(f"{words} {bound:g}", keeps(value, bound)) for words, bound, keeps in asked if bound is not None]
        if not bounds or (math.isfinite(value) and all(kept for _, kept in bounds)):
            return []
        return [f"{name} must be {' and '.join(words for words, _ in bounds)}, not {value}"]


def setting(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    options: Iterable[str] = (),
    same_cell: bool = False,
    same_run: bool = False,
    instead_of: str | Iterable[str] = (),
    not_with: Iterable[str] = (),
    default: Any = MISSING,
) -> Any:
    """A field of a schema and its rules. Of a list or mapping they hold for each element.

    above, at_least, below, at_most: bounds of a finite number. options: the names that it takes.
    same_cell: another value is another run of the same table cell. same_run: it is the same run.
    instead_of: the fields of the same schema that are null (a switch: false) where a user names this one without them.
    not_with: those that have no effect beside this one, or it has none beside them: naming both is refused.
    default: only for a field that no YAML has to name.
    """
    others = (instead_of,) if isinstance(instead_of, str) else tuple(instead_of)
    rule = Rule(above, at_least, below, at_most, tuple(options), same_cell, same_run, others, tuple(not_with))
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass
class TaskConfig:
    """What the schema of every task has. until: the stage after which the run stops; without it, it goes on."""

    name: str = MISSING
    until: str | None = setting(same_run=True, default=None)


def rules(schema: type | None) -> Iterator[tuple[str, Rule]]:
    """The fields of a schema with their rules; none for what is no schema."""
    if dataclasses.is_dataclass(schema):
        for field in dataclasses.fields(schema):
            yield field.name, field.metadata.get("rule", Rule())


def field_at(schema: type | None, path: Sequence[str]) -> Rule | None:
    """The rule of the field at `path` of a schema, through the schemas and mappings in it; None where there is no such
    field.
    """
    key, *deeper = path
    rule = dict(rules(schema)).get(key)
    if schema is None or rule is None or not deeper:
        return rule
    inner = get_type_hints(schema)[key]
    is_mapping = any(get_origin(part) is dict for part in (inner, *get_args(inner)))
    return rule if is_mapping else field_at(inner, deeper)


def problems(node: Any, config: Any, prefix: str = "") -> list[str]:
    """Everything that is wrong with the meaning of a composed node and the ones in it, one sentence each that names
    field and remedy: by the rules of its fields, and by the method `check(self, config)` of its schema.

    config: the whole, for a check that looks beyond its own group.
    """
    schema = OmegaConf.get_type(node)
    found = []
    for key, rule in rules(schema):
        value = node.get(key)
        found += (
            problems(value, config, f"{prefix}{key}.") if _has_schema(value) else rule.problems(prefix + key, value)
        )
    check = getattr(schema, "check", None)
    return found + (check(node, config) if check else [])


def marked(node: Any, role: str, prefix: str = "") -> list[str]:
    """The dotted keys of a composed node whose fields have a role: `same_run` or `same_cell`."""
    found = []
    for key, rule in rules(OmegaConf.get_type(node)):
        if getattr(rule, role):
            found.append(prefix + key)
        elif _has_schema(node.get(key)):
            found += marked(node[key], role, f"{prefix}{key}.")
    return found


def _has_schema(value: Any) -> bool:
    return isinstance(value, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(value))


# --- what checks are written with -----------------------------------------------------------------------------------


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
    return Rule(above=0).problems(field, value)


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


# --- values ---------------------------------------------------------------------------------------------------------


@cache
def configs_dir() -> Path:
    """The folder of the shipped YAML files, in a wheel, an editable install or a plain checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"no configs/config.yaml beside {package}: the installation is incomplete")


def defaults(schema: type, group: str, name: str, **changes: Any) -> Any:
    """The dataclass of a group with the values of its YAML, for use as a library: defaults(TrainerConfig, "trainer",
    "single").

    Raises UsageError for a change to a field that the schema does not know.
    """
    config = OmegaConf.structured(schema)
    for source in reversed(_chain(group, name)):
        config = OmegaConf.merge(config, source)
    try:
        return OmegaConf.to_object(OmegaConf.merge(config, changes))
    except OmegaConfBaseException as error:
        raise UsageError(f"{group}: {str(error).splitlines()[0]}") from error


def of_words(schema: type, name: str, words: Sequence[str]) -> Any:
    """The dataclass with the values of words `field=value`; its defaults count for the others.

    name: of what they configure, for the messages. Raises UsageError for an unknown field and a wrong value.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(list(words)))
    except OmegaConfBaseException as error:
        at = f"{name}: {error.full_key}" if error.full_key else name
        raise UsageError(f"{at}: {str(error).splitlines()[0]}") from error
    if found := problems(config, None):
        raise UsageError("\n".join(found))
    return OmegaConf.to_object(config)


def _chain(group: str, name: str) -> list[Any]:
    """A YAML and the ones of its own group that it starts from, the most special first."""
    content: Any = OmegaConf.load(configs_dir() / group / f"{name}.yaml")
    bases = [base for base in content.pop("defaults") if isinstance(base, str) and base != "_self_"]
    content = content.get(group, content)  # a YAML of the package _global_ holds its group under its name
    return [content, *(source for base in bases for source in _chain(group, base))]
