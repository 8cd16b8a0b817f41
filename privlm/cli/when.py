"""The lines of a recipe that fit one choice: `when: {CONDITION: WORDS}`.

    when:
      adapter=lora: trainer.learning_rate=1e-2 trainer.schedule=linear
      task.setting=li data.format=glue: trainer.batch_size=1000

A condition is one word or more, and all must hold: GROUP=OPTION, of the chosen option or of one that has its `name` (a
copy in another file), or KEY=VALUE. WORDS are overrides as on the command line that set values. Conditions are read
once, from what recipe and user have chosen, so a line sets no group and no key that a condition reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from privlm.cli.explain import flat_keys, no_key, no_such
from privlm.cli.groups import options_of_group
from privlm.cli.schemas import is_key, options_of
from privlm.errors import UsageError
from privlm.schema import one_of


@dataclass(frozen=True)
class Line:
    """condition: as it is written. asks: groups and keys, and what they must be. sets: keys and their values."""

    condition: str
    asks: dict[str, Any]
    sets: dict[str, Any]

    def holds(self, config: DictConfig) -> bool:
        """Whether a composed configuration, its node `hydra` included, meets the condition."""
        choices = config.hydra.runtime.choices
        return all(
            value in (choices.get(key), OmegaConf.select(config, f"{key}.name"))
            if _options(key)
            else OmegaConf.select(config, key) == value
            for key, value in self.asks.items()
        )


def read_lines(when: Mapping[str, str], config: DictConfig) -> list[Line]:
    """The lines of a recipe. config: composed, to name the key that could have been meant.

    Raises UsageError for a condition that no run can meet, and for a line that sets an unknown key, a group, or what a
    condition reads.
    """
    lines = [_read(condition, words) for condition, words in when.items()]
    read = {f"{key}.name" if _options(key) else key for line in lines for key in line.asks}
    for line in lines:
        problems = [_impossible(key, value, config) for key, value in line.asks.items()]
        problems += [_not_to_set(key, read, config) for key in line.sets]
        if found := "; ".join(filter(None, problems)):
            raise UsageError(f"when {line.condition}: {found}")
    return lines


def values_of(lines: list[Line], without: Collection[str] = ()) -> DictConfig:
    """What lines that apply together set, as a tree, but for some keys.

    Raises UsageError if two of them set one key.
    """
    tree = OmegaConf.create()
    for number, line in enumerate(lines):
        for other in lines[:number]:
            if both := [key for key in line.sets if any(_overlap(key, of_other) for of_other in other.sets)]:
                raise UsageError(f"when {other.condition} and when {line.condition} both apply and set {both[0]}")
        for key, value in line.sets.items():
            if key not in without:
                OmegaConf.update(tree, key, value)
    return tree


def _read(condition: str, words: str) -> Line:
    asks = [_parsed(condition, word) for word in condition.split()]
    sets = [_parsed(condition, word) for word in re.split(r"\s+(?=[^\s=\[{]+=)", words.strip())]
    for pairs in (asks, sets):
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"when {condition}: it names one key twice")
    return Line(condition, dict(asks), dict(sets))


def _parsed(condition: str, word: str) -> tuple[str, Any]:
    try:
        override: Override = OverridesParser.create().parse_override(word)
    except HydraException:
        raise UsageError(f"when {condition}: cannot read '{word}'; write KEY=VALUE") from None
    if override.type != OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
        raise UsageError(f"when {condition}: '{word}' must be KEY=VALUE: a line chooses, adds and deletes nothing")
    return override.key_or_group, override.value()


def _impossible(key: str, value: Any, config: DictConfig) -> str:
    """Why no run has `value` there; '' if one can."""
    if options := _options(key):
        return "" if value in options else no_such(str(value), options, key)
    if not is_key(key):
        return no_key(key, flat_keys(config))
    names = options_of(key)
    return "; ".join(one_of(key, value, names)) if names else ""


def _not_to_set(key: str, read: Collection[str], config: DictConfig) -> str:
    """Why no line may set `key`; '' if one may. read: the keys that conditions read."""
    if _options(key):
        return f"{key} is a group: choose it in the recipe itself or on the command line"
    if any(_overlap(key, other) for other in read):
        return f"{key} is read by a condition: set it in the recipe itself or on the command line"
    return "" if is_key(key) else no_key(key, flat_keys(config))


def _options(group: str) -> list[str]:
    """The options of a group, [] for what is none."""
    return options_of_group(group) if "." not in group else []


def _overlap(key: str, other: str) -> bool:
    """Whether setting one changes the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
