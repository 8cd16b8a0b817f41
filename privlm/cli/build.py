"""`privlm build NAME FOLDER [field=value ...]`: makes a data set or a model that a task knows by name."""

from __future__ import annotations

import importlib
import os
import tempfile
from pathlib import Path

import privlm
from privlm import registry
from privlm.cli.arguments import ArgumentParser
from privlm.errors import UsageError
from privlm.report.store import nearest


def main(argv: list[str]) -> int:
    """Raises UsageError for an unknown name, a folder that holds something, or what the builder refuses."""
    builders = _builders()
    parser = ArgumentParser(prog="privlm build", description=__doc__, epilog=_listed(builders))
    parser.add_argument("name", help="what to make")
    parser.add_argument("folder", type=Path, help="where; a new or an empty folder")
    parser.add_argument("words", nargs="*", metavar="field=value", help="fields of its configuration")
    arguments = parser.parse_args(argv)
    if arguments.name not in builders:
        raise UsageError(
            f"no builder '{arguments.name}'{nearest(arguments.name, builders)} (privlm build --help lists them)"
        )
    unread = [word for word in arguments.words if "=" not in word]
    if unread:
        raise UsageError(f"'{unread[0]}' is no field=value")
    folder = arguments.folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".privlm-build-") as temporary:
        made = Path(temporary) / folder.name
        said = builders[arguments.name](made, arguments.words)
        os.replace(made, folder)
    print(f"{folder}: {said}")
    return 0


def _builders() -> dict[str, registry.Builder]:
    """By name: those of the tasks, and those of the parts of privlm that have a builders.py. The latter win."""
    found = {name: builder for task in registry.tasks().values() for name, builder in task.builders().items()}
    for path in sorted(Path(privlm.__file__).parent.glob("*/builders.py")):
        found |= importlib.import_module(f"privlm.{path.parent.name}.builders").BUILDERS
    return dict(sorted(found.items()))


def _listed(builders: dict[str, registry.Builder]) -> str:
    width = max(map(len, builders), default=0)
    summaries = {name: (builder.__doc__ or "").strip().partition("\n")[0] for name, builder in builders.items()}
    return "".join(f"  {name:<{width}}  {summary}\n" for name, summary in summaries.items())
