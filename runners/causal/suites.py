"""The suites by name, and the families of files that each reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import arctic, crass, memorisation, neuropathic, normality, redaction, tuebingen, vignettes
from .config import SUITES, suite_names
from .items import Item
from .sources import Sources
from .suite import Suite

LOADERS: dict[str, Callable[[Sources, Any, int], Suite]] = {
    "tuebingen": lambda sources, task, seed: tuebingen.load(sources, task.prompting),
    "neuropathic_pair": lambda sources, task, seed: neuropathic.load_pairs(sources, seed),
    "neuropathic_one_side": lambda sources, task, seed: neuropathic.load_one_side(sources),
    "neuropathic_graph100": lambda sources, task, seed: neuropathic.load_graph100(sources),
    "arctic": lambda sources, task, seed: arctic.load(sources),
    "crass": lambda sources, task, seed: crass.load(sources),
    "vignettes": lambda sources, task, seed: vignettes.load(sources, lab=False),
    "vignettes_lab": lambda sources, task, seed: vignettes.load(sources, lab=True),
    "normality": lambda sources, task, seed: normality.load(sources),
    "memorisation": lambda sources, task, seed: memorisation.load(sources),
    "redaction": lambda sources, task, seed: redaction.load(sources, seed),
}
assert set(LOADERS) == set(SUITES) - {"numeric"}


def load_all(sources: Sources, task: Any, seed: int) -> list[Suite]:
    """The suites of `task` that ask a model, in their order."""
    return [load(name, sources, task, seed) for name in suite_names(task) if name in LOADERS]


def load(name: str, sources: Sources, task: Any, seed: int) -> Suite:
    """The suite with the settings of `task` in place of the paper's, where it gives any."""
    suite = LOADERS[name](sources, task, seed)
    systems = {"auto": suite.system, "none": None, "expert": neuropathic.EXPERT}
    return replace(
        suite,
        items=_first(suite.items, task.num_items),
        system=systems.get(task.system, task.system),
        temperature=suite.temperature if task.temperature is None else task.temperature,
        max_tokens=suite.max_tokens if task.max_tokens is None else min(task.max_tokens, suite.max_tokens),
    )


def _first(items: tuple[Item, ...], num_units: int | None) -> tuple[Item, ...]:
    """The items of the first so many units, of each part where a unit belongs to one part."""
    if num_units is None:
        return items
    units_of_part: dict[str, list[str]] = {}
    part_of: dict[str, str] = {}
    for item in items:
        part = part_of.setdefault(item.resampled_as, item.part)
        units = units_of_part.setdefault(part, [])
        if item.resampled_as not in units:
            units.append(item.resampled_as)
    kept = {unit for units in units_of_part.values() for unit in units[:num_units]}
    return tuple(item for item in items if item.resampled_as in kept)
