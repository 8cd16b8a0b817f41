"""`privlm cp GROUP/NAME FOLDER [NEW_NAME]`: copies a shipped YAML file into a folder of your own, to edit it."""

from __future__ import annotations

import re
from pathlib import Path

from privlm import registry
from privlm.cli.arguments import ArgumentParser
from privlm.errors import UsageError
from privlm.report.store import nearest

EPILOG = """\
examples:
  privlm cp model/minilm my             writes my/model/minilm.yaml, which then goes before the shipped one
  privlm cp model/minilm my my_encoder  writes my/model/my_encoder.yaml
  privlm cp recipe/ewtune_small my      the sizes and rates of a task at a scale
  privlm run task=ewtune model=my_encoder --config-dir my
"""

LABELLED = ("data", "model")
"""Groups whose files hold their own name as a mere label; elsewhere `name` chooses what is done."""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm cp", description=__doc__, epilog=EPILOG)
    parser.add_argument("source", metavar="GROUP/NAME", help="as `privlm list` shows them, e.g. model/minilm")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="yours; made if it is not there")
    parser.add_argument("new_name", metavar="NEW_NAME", nargs="?", help="another name for the copy")
    parser.add_argument("--force", action="store_true", help="overwrite")
    arguments = parser.parse_args(argv)
    source = find_config(arguments.source)
    group, name = source.parent.name, arguments.new_name or source.stem
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise UsageError(f"NEW_NAME: '{name}' may hold letters, digits, and the signs _ . -")
    target = arguments.folder / group / f"{name}.yaml"
    if target.exists() and not arguments.force:
        raise UsageError(f"{target} is there already; --force overwrites it")
    text = source.read_text(encoding="utf-8")
    if group in LABELLED:
        text = re.sub(rf"^( *name: ){source.stem}$", rf"\g<1>{name}", text, count=1, flags=re.MULTILINE)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}; choose another FOLDER") from error
    print(target)
    print(f"use it: {_command(group, name)} --config-dir {arguments.folder}")
    return 0


def find_config(word: str) -> Path:
    """The YAML file that GROUP/NAME names. Raises UsageError with the nearest that there is."""
    files = {f"{group}/{name}": path for group in groups() for name, path in registry.config_files(group).items()}
    if word not in files:
        raise UsageError(f"no config '{word}'{nearest(word, files)} (`privlm list` shows groups and names)")
    return files[word]


def groups() -> list[str]:
    """The folders of configs that hold options: the groups of the command line, recipes and tables."""
    return sorted({folder.name for root in registry.config_dirs() for folder in root.iterdir() if folder.is_dir()})


def _command(group: str, name: str) -> str:
    if group == "table":
        return f"privlm tables {name}"
    return f"privlm run task={name}" if group == "task" else f"privlm run task=TASK {group}={name}"
