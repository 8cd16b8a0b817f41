"""`privlm list [KIND]`: tasks, the options of every config group, and tables, each with a line that says what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

from privlm import registry
from privlm.cli.arguments import ArgumentParser
from privlm.errors import UsageError
from privlm.report.render import READABLE, line_width
from privlm.report.store import nearest

GROUPS = {
    "models": "model",
    "data": "data",
    "adapters": "adapter",
    "llms": "llm",
    "privacy": "privacy",
    "trainers": "trainer",
    "trackers": "tracker",
    "scales": "scale",
}
"""Kind -> config group, for `GROUP=NAME`."""

KINDS = ("tasks", *GROUPS, "tables")

EPILOG = """\
examples:
  privlm list                       everything
  privlm list models                what `model=` takes
  privlm list data --config-dir my  your own YAML files included
  privlm list --json | jq -r '.tasks | keys[]'

With --json: {kind: {name: summary}}.
"""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm list", description=__doc__, epilog=EPILOG)
    parser.add_argument("kind", nargs="?", help=", ".join(KINDS))
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="folder of your own YAML files")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args(argv)
    if arguments.kind is not None and arguments.kind not in KINDS:
        raise UsageError(f"no kind '{arguments.kind}'{nearest(arguments.kind, KINDS)} (there are {', '.join(KINDS)})")
    kinds = KINDS if arguments.kind is None else (arguments.kind,)
    found = {kind: summaries(kind, arguments.config_dir) for kind in kinds}
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_text(kind, by_name) for kind, by_name in found.items()), end="")
    return 0


def summaries(kind: str, config_dirs: Sequence[Path] = ()) -> dict[str, str]:
    """Name -> what it is: a runner's docstring, a table's title, or the comment that opens a YAML file."""
    if kind == "tasks":
        return {name: task.summary for name, task in registry.tasks().items()}
    if kind == "tables":
        return {name: _title(path) for name, path in registry.config_files("table", config_dirs).items()}
    return {name: _comment(path) for name, path in registry.config_files(GROUPS[kind], config_dirs).items()}


def _comment(path: Path) -> str:
    """The first line of the comment that opens a YAML file, without Hydra's `# @package` and the command at its end."""
    for line in _lines(path):
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            return line.removeprefix("#").partition("`privlm")[0].strip()
    return ""


def _title(path: Path) -> str:
    """The title of a table file. Only its line is parsed: PyYAML takes 20 ms for a whole file."""
    import yaml

    titles = [line for line in _lines(path) if line.startswith("title:")]
    return str(yaml.safe_load(titles[0])["title"]) if titles else ""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _text(kind: str, by_name: dict[str, str]) -> str:
    """Lines `name  summary`, broken between words where standard output is narrow."""
    column = max(map(len, by_name), default=0) + 4
    heading = f"{kind} ({GROUPS[kind]}=NAME)" if kind in GROUPS else kind
    lines = [heading]
    for name, text in by_name.items():
        wrapped = wrap(text, max(READABLE, line_width() - column), break_long_words=False, break_on_hyphens=False)
        lines += [
            f"{head:<{column}}{line}".rstrip() for head, line in zip_longest([f"  {name}"], wrapped, fillvalue="")
        ]
    return "".join(f"{line}\n" for line in lines)
