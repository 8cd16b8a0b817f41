"""The options of Hydra's config groups, while `privlm.cli.compose.composer` holds Hydra."""

from __future__ import annotations

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType


def options_of_group(group: str) -> list[str]:
    """The names that `group=` takes; [] for what is no group.

    ConfigLoader.get_group_options says the same, but copies the whole config store for each answer.
    """
    sources = GlobalHydra.instance().config_loader().get_sources()
    return sorted({name for one in sources if one.is_group(group) for name in one.list(group, ObjectType.CONFIG)})
