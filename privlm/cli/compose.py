"""From the words of the command line to a checked configuration.

Hydra composes; the recipe is ours. A recipe (`configs/recipe/<task>_<scale>.yaml`) may choose for any group, which
Hydra forbids to an interpolated entry of the defaults list. So the words are composed once to learn task and scale, and
then again with `recipe=<task>_<scale>` as an override like any other: what the user wrote still wins. That composition
tells which lines of the recipe's `when` apply (privlm.cli.when); a recipe that starts from the first and sets what they
say then takes its place.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from privlm import config as core
from privlm import identity, registry
from privlm.cli import hydras
from privlm.cli.explain import explain, no_key
from privlm.cli.groups import options_of_group
from privlm.cli.schemas import not_with, schemas, stood_in_for
from privlm.cli.when import Line, read_lines, values_of
from privlm.errors import UsageError
from privlm.schema import configs_dir, marked
from privlm.schema import problems as schema_problems
from privlm.sweeps.schema import SlurmConfig, SweepConfig

GROUPS = ("scale", "task", "model", "data", "adapter", "llm", "federated", "privacy", "trainer", "tracker")


NO_PART_OF_A_RUN = ("hydra", "recipe", "when", "sweep")

REQUIRED = ("scale", "task", "model", "data", "adapter", "privacy", "trainer", "tracker")
"""Of these, the ones that a task has cannot be deleted."""


@dataclass(frozen=True)
class Words:
    """What follows `privlm run`: Hydra's overrides, the user's config folders, and the name of the primary config."""

    overrides: tuple[str, ...]
    config_dirs: tuple[Path, ...] = ()
    config_name: str = "config"

    def with_overrides(self, overrides: Sequence[str]) -> Words:
        return Words(tuple(overrides), self.config_dirs, self.config_name)


@dataclass(frozen=True)
class Composed:
    """A resolved, read-only configuration, and how it came about.

    words: those that gave it, recipe included; typed: those of the user. chosen_by: group -> who chose its option.
    roles: of its keys in the hashes. lines: the conditions of the recipe's `when` that hold; None for a recipe without
    one. sweep, launcher: how it is worked on as one of many runs (privlm.sweeps.schema); without a launcher, by workers
    of this machine.
    """

    config: DictConfig
    words: Words
    chosen_by: dict[str, str]
    roles: identity.Roles
    lines: tuple[str, ...] | None = None
    sweep: SweepConfig | None = None
    launcher: SlurmConfig | None = None
    typed: tuple[str, ...] = ()

    def with_seed(self, seed: int) -> Composed:
        """The same with another seed, where nothing else depends on it."""
        config = copy.deepcopy(self.config)
        OmegaConf.set_readonly(config, False)
        config.seed = seed
        OmegaConf.set_readonly(config, True)

        def seeded(words: Sequence[str]) -> tuple[str, ...]:
            return (*(word for word in words if not word.startswith("seed=")), f"seed={seed}")

        words = self.words.with_overrides(seeded(self.words.overrides))
        return replace(self, config=config, words=words, typed=seeded(self.typed))


def compose(words: Words) -> Composed:
    """Composes and checks one run.

    Raises UsageError with one message: an unknown key, option or type, a missing value, or all problems of meaning at
    once.
    """
    prepare(words.config_dirs)
    with composer():
        first, complete = _with_recipe(words)
        hydras.refuse_unused(first)
        plain = _compose(complete)
        lines = _lines(plain)
        composed = _compose_with(lines, complete, plain) if lines else plain
        chosen_by = _chosen_by(words.overrides, before=first, after=composed)
    config = _with_schema(composed)
    try:
        _require_values(config)
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:  # an interpolation of something that is not there
        raise UsageError(explain(error, complete.overrides, _composed_without(complete))) from error
    launcher = hydras.launcher_of(composed)
    problems = [*core.check(config), *schema_problems(composed.sweep, config, "sweep.")]
    problems += schema_problems(launcher, config, "hydra.launcher.") if launcher is not None else []
    if problems:
        head = "the configuration has a problem:" if len(problems) == 1 else "the configuration has problems:"
        raise UsageError("\n".join([head, *(f"  {problem}" for problem in problems)]))
    OmegaConf.set_readonly(config, True)
    roles = identity.Roles(tuple(marked(config, "same_run")), tuple(marked(config, "same_cell")))
    conditions = None if lines is None else tuple(line.condition for line in lines)
    sweep: Any = OmegaConf.to_object(composed.sweep)
    slurm: Any = None if launcher is None else OmegaConf.to_object(launcher)
    return Composed(config, complete, chosen_by, roles, conditions, sweep, slurm, words.overrides)


def compose_all(runs: Sequence[Words]) -> list[Composed]:
    """Composes each. Of runs that differ in the seed alone only two are, where the second shows that no other value
    depends on it: a third takes some hundredths of a second then.

    Raises UsageError as `compose` does.
    """
    first: dict[tuple[Any, ...], Composed] = {}
    follows: dict[tuple[Any, ...], bool] = {}
    composed = []
    for words in runs:
        seeds = [word for word in words.overrides if word.startswith("seed=")]
        others = tuple(word for word in words.overrides if word not in seeds)
        group = (others, words.config_dirs, words.config_name)
        seed = seeds[0].partition("=")[2] if len(seeds) == 1 else ""
        if follows.get(group) and seed.isdecimal():
            composed.append(first[group].with_seed(int(seed)))
            continue
        one = compose(words)
        if group in first:
            follows[group] = first[group].with_seed(one.config.seed).config == one.config
        first.setdefault(group, one)
        composed.append(one)
    return composed


def for_inspection(words: Words) -> Words:
    """The words with the recipe that belongs to them and its lines, for Hydra's own inspection flags."""
    prepare(words.config_dirs)
    with composer():
        _, complete = _with_recipe(words)
        plain = _compose(complete)
        if lines := _lines(plain):
            complete = _store_with(lines, complete, plain)
        return complete.with_overrides([*_for_hydra(complete.overrides), "~when", "~sweep"])


def expand(words: Words) -> list[Words]:
    """The runs of a sweep in Hydra's grammar: comma lists, choice(), range() and `hydra.sweeper.params`."""
    prepare(words.config_dirs)
    with composer():
        runs = _product(words)
        if words.config_dirs or registry.user_config_dirs() or words.config_name != "config":
            runs = [run for one in runs for run in _product(one.with_overrides(_with_params(one)))]
    return runs


def _product(words: Words) -> list[Words]:
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    try:
        batches = BasicSweeper.split_arguments(parser.parse_overrides(list(words.overrides)), max_batch_size=None)
    except HydraException as error:
        raise UsageError(explain(error, words.overrides, _composed_without(words))) from error
    return [words.with_overrides(overrides) for batch in batches for overrides in batch]


def _with_params(words: Words) -> list[str]:
    """The words of a run and what its YAML says of `hydra.sweeper.params`, but for keys that a word sets."""
    _require_task(words.overrides)
    _refuse_left_out(words.overrides)
    params = OmegaConf.select(_compose(words), "hydra.sweeper.params") or {}
    given = {_key_of(word) for word in words.overrides}
    return [*words.overrides, *(f"{key}={value}" for key, value in params.items() if key not in given)]


def options(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The names that `group=` takes, of shipped and user configs alike."""
    prepare(config_dirs)
    with composer():
        return options_of_group(group)


# --- what Hydra has to know -----------------------------------------------------------------------------------------


class UserConfigs(SearchPathPlugin):
    """Adds the user's folders and those of outside tasks to Hydra's search path."""

    folders: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: Any) -> None:
        for folder in reversed(self.folders):
            search_path.prepend("user", f"file://{folder}")
        for task in registry.tasks().values():
            if task.config_dir is not None:
                search_path.append(task.name, f"file://{task.config_dir}")


def prepare(config_dirs: Sequence[Path] = ()) -> None:
    """Makes schemas and search path known to Hydra; harmless when repeated.

    Raises UsageError for a folder that is not there.
    """
    UserConfigs.folders = tuple(registry.user_config_dirs(config_dirs))
    Plugins.instance().register(UserConfigs)
    store = ConfigStore.instance()
    for group, by_name in schemas().items():
        for name, schema in by_name.items():
            store.store(group=f"schema/{group}", name=name, node=schema)


@contextlib.contextmanager
def composer() -> Iterator[None]:
    """Hydra's Compose API on our folder, whatever state an earlier use has left."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(configs_dir()), version_base="1.3", job_name="privlm"):
        yield


def _compose(words: Words) -> DictConfig:
    try:
        return hydra_compose(words.config_name, _for_hydra(words.overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError) as error:
        raise UsageError(explain(error, words.overrides, _composed_without(words))) from error
    except AttributeError as error:  # OmegaConf merges no mapping into a null
        mappings = [word for word in words.overrides if "={" in word]
        if not mappings:
            raise
        raise UsageError(f"{' or '.join(mappings)}: it is null here, and takes a mapping in a YAML alone") from error


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """`key={name: value}` as `++key=...`: Hydra gives no new name to a mapping otherwise, not even to a free one."""
    return [f"++{word}" if re.match(r"[\w.]+=\{", word) else word for word in overrides]


def _composed_without(words: Words) -> Any:
    """A function that composes without one override, to learn the keys that could have been meant."""

    def compose_without(key: str) -> DictConfig | None:
        kept = [word for word in words.overrides if not word.lstrip("+~").startswith((f"{key}=", f"{key}@"))]
        with contextlib.suppress(HydraException, OmegaConfBaseException):
            return hydra_compose(words.config_name, kept)
        return None

    return compose_without


def _with_recipe(words: Words) -> tuple[DictConfig, Words]:
    """What the words compose alone, and the words with the recipe that belongs to that."""
    _require_task(words.overrides)
    _refuse_left_out(words.overrides)
    first = _compose(words)
    recipe = _recipe(first, words.overrides)
    return first, words.with_overrides([*words.overrides, *recipe, *_put_out(words.overrides, first)])


def _put_out(overrides: Sequence[str], composed: DictConfig) -> list[str]:
    """Of fields that stand for one another the user has named one: what YAML or recipe say of the others is put out.

    Raises UsageError where the user has named two of which one has no effect beside the other.
    """
    given = _fields_given(overrides)
    for key in given:
        if both := [other for other in not_with(key) if other in given]:
            raise UsageError(f"{key} and {both[0]}: one leaves the other without effect; give one of the two")
    others = dict.fromkeys(other for key in given for other in stood_in_for(key))
    named = {_key_of(word) for word in overrides}
    nodes = {other: OmegaConf.select(composed, other.rpartition(".")[0]) for other in others if other not in named}
    return [
        f"{other}={'false' if isinstance(node[name], bool) else 'null'}"
        for other, node in nodes.items()
        if node is not None and (name := other.rpartition(".")[2]) in node
    ]


def _fields_given(overrides: Sequence[str]) -> list[str]:
    """The fields `group.name` that words give a value to, or a part of it (model.random.hidden_size)."""
    given = [word.partition("=") for word in overrides if word.partition("=")[2] not in ("null", "false", "{}", "[]")]
    return [".".join(_key_of(key).split(".")[:2]) for key, _, _ in given]


def _key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _recipe(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    if any(_is_recipe(word) for word in overrides):
        return []
    task = config.task.name
    available = options_of_group("recipe")
    if f"{task}_{config.scale}" in available:
        return [f"recipe={task}_{config.scale}"]
    scales = [name.removeprefix(f"{task}_") for name in available if name.startswith(f"{task}_")]
    if scales:
        raise UsageError(f"task '{task}' has no recipe for scale={config.scale}; it has {', '.join(scales)}")
    return []


def _lines(config: DictConfig) -> list[Line] | None:
    """The lines of `when` that apply to a configuration composed without them, None where there are none at all."""
    if not config.get("when"):
        return None
    try:
        return [line for line in read_lines(config.when, config) if line.holds(config)]
    except OmegaConfBaseException as error:
        raise UsageError(f"when: {str(error).splitlines()[0]}") from error


def _store_with(lines: list[Line], words: Words, plain: DictConfig) -> Words:
    """Makes a recipe known to Hydra that starts from the one in `plain` and sets what the lines say; the words with it.

    The user's primary config and the words win over it: a key that a word sets is left to that word, since Hydra would
    merge two mappings.
    """
    recipe = plain.hydra.runtime.choices.get("recipe")
    bases = [] if recipe is None else [recipe]
    given = [word.lstrip("+").partition("=")[0] for word in words.overrides]
    node = OmegaConf.merge({"defaults": [*bases, "_self_"]}, values_of(lines, without=given))
    name = f"when_of_{recipe}"
    ConfigStore.instance().store(group="recipe", name=name, node=node, package="_global_")
    return words.with_overrides([*(word for word in words.overrides if not _is_recipe(word)), f"recipe={name}"])


def _compose_with(lines: list[Line], words: Words, plain: DictConfig) -> DictConfig:
    try:
        return _compose(_store_with(lines, words, plain))
    except UsageError as error:  # without the lines it could be composed
        raise UsageError(f"when {', '.join(line.condition for line in lines)}: {error}") from error


def _is_recipe(word: str) -> bool:
    return word.startswith("recipe=")


def _chosen_by(overrides: Sequence[str], *, before: DictConfig, after: DictConfig) -> dict[str, str]:
    """Group -> `choice (who chose it)`."""
    chosen = {}
    for group in GROUPS:
        choice = after.hydra.runtime.choices.get(group)
        if choice is None:  # nothing of this group belongs to the task
            continue
        if any(word.startswith(f"{group}=") for word in overrides):
            who = "given"
        elif before.hydra.runtime.choices.get(group) != choice:
            who = "recipe"
        elif group == "scale" and choice != "small":
            who = f"natural to model={after.model.name}"
        else:
            who = "default"
        chosen[group] = f"{choice} ({who})"
    return chosen


def _require_task(overrides: Sequence[str]) -> None:
    if not any(word.startswith("task=") for word in overrides):
        raise UsageError(f"which task? Add task=NAME; the tasks are {', '.join(registry.tasks())}")


def _refuse_left_out(overrides: Sequence[str]) -> None:
    """A deleted group would be missed only when it is read. A task says itself whether it can do without an llm."""
    hydras.refuse_words(overrides)
    for word in overrides:
        if word.startswith("~") and (group := word[1:].partition("=")[0]) in REQUIRED:
            raise UsageError(f"~{group} leaves the run without its {group}: choose another, {group}=NAME")


def _with_schema(config: DictConfig) -> DictConfig:
    """The configuration without what is Hydra's, and with the schema of the whole, which Hydra's merging loses.

    Raises UsageError for a key that no schema has.
    """
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key not in NO_PART_OF_A_RUN])
    _refuse_extra_keys(ours, core.Config)
    whole = OmegaConf.merge(OmegaConf.structured(core.Config), ours)
    assert isinstance(whole, DictConfig)
    with flag_override(whole, "struct", False):
        del whole["when"], whole["sweep"]
    return whole


def _require_values(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UsageError(
            f"no value for {', '.join(missing)}: add {' '.join(f'{key}=VALUE' for key in missing)}, or choose a config "
            "that sets it"
        )


def _refuse_extra_keys(config: DictConfig, schema: type | None, prefix: str = "") -> None:
    """Hydra's `+key=value` adds a key to a schema too, where nothing would read it."""
    known = [field.name for field in fields(schema)] if schema is not None and is_dataclass(schema) else list(config)
    for key in config:
        if key not in known:
            raise UsageError(no_key(f"{prefix}{key!s}", [f"{prefix}{name!s}" for name in known]))
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation() or node._is_missing()):
            _refuse_extra_keys(node, OmegaConf.get_type(node), f"{prefix}{key!s}.")
