"""Hydra's and OmegaConf's refusals in one sentence, with the nearest right spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from privlm.cli.groups import options_of_group
from privlm.sweeps.schema import SlurmConfig

ComposeWithout = Callable[[str], DictConfig | None]


def explain(error: Exception, overrides: Sequence[str], compose_without: ComposeWithout) -> str:
    """What `error` means for the user.

    compose_without: composes the overrides without the one of a given key, None if that fails too.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing_config(text)
    if (unreadable := _unreadable(error)) is not None:
        return unreadable
    if (key := _unknown_key(text)) is not None:
        config = compose_without(key)
        return no_key(key, flat_keys(config) if config is not None else ())
    if (found := _at_fault(error, overrides)) is not None:
        return found
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return f"{_refused_key(text, str(cause))}: {str(cause).splitlines()[0]}"
    return _first_lines(text)


def _at_fault(error: Exception, overrides: Sequence[str]) -> str | None:
    """For two errors whose messages name no key: the word that they mean."""
    if isinstance(error, AssertionError):
        deep = [word for word in overrides if word.partition("=")[0].count(".") > 1]
        return f"{' or '.join(deep)} lies below a key that is null: give the whole, as KEY={{a: 1, b: 2}}"
    if str(error).startswith("Config group override must be"):
        words = [word.partition("=") for word in overrides]
        group = next(key for key, _, value in words if value == "null" and options_of_group(key))
        return f"{group}=null: a group takes the name of an option; ~{group} leaves it out"
    return None


def no_key(key: str, keys: Iterable[str]) -> str:
    """`no key 'name'; did you mean 'near'?`"""
    if key.startswith("hydra.launcher."):  # Hydra's default launcher has no settings
        settings = [f"hydra.launcher.{field.name}" for field in fields(SlurmConfig)]
        near = difflib.get_close_matches(key, settings, n=1, cutoff=0.6)
        return f"no key '{key}'; hydra/launcher=privlm_slurm has {', '.join(near or settings)}"
    near = difflib.get_close_matches(key, list(keys), n=1, cutoff=0.6)
    return f"no key '{key}'" + (f"; did you mean '{near[0]}'?" if near else " (--cfg job shows them all)")


def no_such(name: str, available: Iterable[str], kind: str) -> str:
    """`no KIND 'name'; did you mean 'near'? (there are ...)`"""
    available = list(available)
    near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"no {kind} '{name}'{hint} ({kind} takes {', '.join(available)})"


def flat_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all keys of a configuration, containers included."""
    keys = []
    for key in config:
        keys.append(f"{prefix}{key!s}")
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation() or node._is_missing()):
            keys += flat_keys(node, f"{prefix}{key!s}.")
    return keys


def _missing_config(text: str) -> str:
    if found := re.search(r"Could not (?:find|load) '([^'/]+)/([^']*)'", text):
        group, name = found.groups()
        return no_such(name, options_of_group(group), group)
    found = re.search(r"Cannot find primary config '([^']*)'", text)
    return (
        f"--config-name: no file {found.group(1)}.yaml in configs/ or a --config-dir" if found else _first_lines(text)
    )


def _unreadable(error: Exception) -> str | None:
    """For an override against Hydra's grammar, or one that only a sweep can take; None for another kind of error."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}': write KEY=VALUE, and a value with special signs in quotes"
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", str(error)):
        key, values = found.groups()
        return f"{key} has several values: privlm sweep runs each of them; one list is written {key}=[{values}]"
    return None


def _unknown_key(text: str) -> str | None:
    """The key of an error about an unknown one, or None for another kind of error."""
    if found := re.search(r"Could not override '([^'@]+)", text):
        return found.group(1)
    if re.search(r"Key '[^']*' (is )?not in", text) and (found := re.search(r"full_key: (\S+)", text)):
        return found.group(1)
    return None


def _refused_key(text: str, cause: str) -> str:
    if found := re.search(r"full_key: (\S+)", cause):
        return found.group(1)
    found = re.search(r"override ([^=\s]+)=", text)
    return found.group(1) if found else "override"


def _first_lines(text: str) -> str:
    """Hydra's own words without its links and advice on environment variables."""
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join([line for line in lines if line and "://" not in line and "HYDRA_FULL" not in line][:4])
