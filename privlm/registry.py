"""Finds the tasks: the folders of privlm.runners, and outside packages by the entry-point group `privlm.tasks`.

A task is a package with `config.py` (a dataclass `Task`, optional `SCHEMAS` of its groups, `inputs(config)` and
`contents(config)` of what a run reads) and `run.py` (`run(config, job)`, optional `predictor(config, folder)` and
`federation(config)`). It may have `plan.py` (`plan(config)`, for --dry-run), `verbs.py` (`VERBS`, for `privlm TASK
VERB`), `builders.py` (`BUILDERS`, for `privlm build NAME`) and `needs.py` (`needs()`, for `privlm doctor`); an outside
package also a folder `configs` beside them. All but run.py import nothing heavy. This module is the only road from
privlm/ to a runner.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from privlm.content import Content, of_paths
from privlm.errors import UsageError
from privlm.schema import configs_dir

if TYPE_CHECKING:
    from privlm.predictor import Predictor

ENTRY_POINT_GROUP = "privlm.tasks"

Verb = Callable[[list[str]], int]
"""A command of a task: the words after it -> exit status. The first line of its docstring says what it does."""

Builder = Callable[[Path, Sequence[str]], str]
"""Makes a named data set or model in a folder, by words `field=value`, and says what it has made. The first line of its
docstring says what it is.
"""


@dataclass(frozen=True)
class TaskEntry:
    """A task that can be run: its name, the package that implements it, and its own config folder if it has one."""

    name: str
    package: str
    folder: Path
    config_dir: Path | None = None

    @property
    def summary(self) -> str:
        """First line of the package's docstring, read without importing it."""
        return (ast.get_docstring(self._parsed("__init__.py")) or "").partition("\n")[0]

    @property
    def has_predictor(self) -> bool:
        """Whether run.py defines or imports a `predictor`, read without importing it."""
        statements = self._parsed("run.py").body
        defined = {node.name for node in statements if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        imported = {alias.name for node in statements if isinstance(node, ast.ImportFrom) for alias in node.names}
        return "predictor" in defined | imported

    def config_module(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.config")

    def inputs(self, config: Any) -> dict[str, str]:
        """Fingerprints of what the run reads: name -> digest. Raises UsageError for what is not at hand."""
        function: Callable[[Any], dict[str, str]] | None = getattr(self.config_module(), "inputs", None)
        return function(config) if function else {}

    def contents(self, config: Any, inputs: Mapping[str, str]) -> dict[str, Content]:
        """What is behind the names of data and weights, by group; of a task that does not say, all that comes from a
        path is own content.

        inputs: what `inputs` has found. Raises UsageError for data that cannot be read.
        """
        function: Callable[[Any], dict[str, Content]] | None = getattr(self.config_module(), "contents", None)
        return of_paths(config, inputs) | (function(config) if function else {})

    def plan(self, config: Any) -> dict[str, Any]:
        """What a dry run prints: name -> value, from the task's own `plan.py`.

        Raises UsageError for a task without one.
        """
        if not (self.folder / "plan.py").is_file():
            raise UsageError(f"--dry-run: task '{self.name}' has no plan.py that could say what it would do")
        return importlib.import_module(f"{self.package}.plan").plan(config)

    def verbs(self) -> dict[str, Verb]:
        """The task's own commands by name; none without a verbs.py."""
        if not (self.folder / "verbs.py").is_file():
            return {}
        return importlib.import_module(f"{self.package}.verbs").VERBS

    def builders(self) -> dict[str, Builder]:
        """What `privlm build` can make of the task's, by name; nothing without a builders.py."""
        if not (self.folder / "builders.py").is_file():
            return {}
        return importlib.import_module(f"{self.package}.builders").BUILDERS

    def needs(self) -> Iterable[tuple[str, str]]:
        """What the task wants of a machine beside the core: what there is or is not, and the remedy where something is
        missing, else nothing. Empty without a needs.py.
        """
        if not (self.folder / "needs.py").is_file():
            return ()
        return importlib.import_module(f"{self.package}.needs").needs()

    def run_function(self) -> Callable[[Any, Any], None]:
        """The experiment; importing it may import torch."""
        return importlib.import_module(f"{self.package}.run").run

    def predictor(self, config: Any, folder: Path) -> Predictor:
        """The trained model of the run in `folder`; importing it may import torch.

        Raises UsageError for a task that declares none, naming those that do.
        """
        if not self.has_predictor:
            others = ", ".join(name for name, task in tasks().items() if task.has_predictor)
            raise UsageError(
                f"task '{self.name}' has no predictor(config, folder) in its run.py, so its runs cannot predict, be "
                f"evaluated or exported; tasks that have one: {others or 'none'}"
            )
        return importlib.import_module(f"{self.package}.run").predictor(config, folder)

    def federation(self, config: Any) -> Any:
        """The clients of a run (privlm.federated.federation.Federation); importing it imports torch.

        Raises UsageError for a task that declares none.
        """
        run = importlib.import_module(f"{self.package}.run")
        if not hasattr(run, "federation"):
            raise UsageError(
                f"task '{self.name}' has no federation(config) in its run.py, by which other processes could work for "
                "its clients: use federated.engine=inprocess"
            )
        return run.federation(config)

    def _parsed(self, file: str) -> ast.Module:
        return ast.parse((self.folder / file).read_text(encoding="utf-8"))


@cache
def tasks() -> dict[str, TaskEntry]:
    """All tasks by name. A shipped task wins over an outside one of the same name."""
    found = _outside_tasks()
    for folder in sorted(runners_dir().iterdir()):
        if (folder / "config.py").is_file():
            found[folder.name] = TaskEntry(folder.name, f"privlm.runners.{folder.name}", folder)
    return dict(sorted(found.items()))


def entry_of(config: Any) -> TaskEntry:
    """The task of a configuration. Raises UsageError where nobody runs it."""
    entry = tasks().get(config.task.name)
    if entry is None:
        raise UsageError(f"task.name={config.task.name} has no runner; the tasks are {', '.join(tasks())}")
    return entry


def user_config_dirs(given: Sequence[Path] = ()) -> list[Path]:
    """The user's folders of YAML files: those of `--config-dir`, then PRIVLM_CONFIG_DIR.

    Raises UsageError for a folder that is not there.
    """
    from_environment = os.environ.get("PRIVLM_CONFIG_DIR")
    named = [("--config-dir", folder) for folder in given]
    named += [("PRIVLM_CONFIG_DIR", Path(from_environment))] if from_environment else []
    for source, folder in named:
        if not folder.is_dir():
            raise UsageError(f"{source}: no folder {folder}")
    return [folder.resolve() for _, folder in named]


def config_dirs(given: Sequence[Path] = ()) -> list[Path]:
    """Every folder of YAML files in the order of search: the user's, the shipped one, those of outside tasks."""
    outside = [task.config_dir for task in tasks().values() if task.config_dir is not None]
    return [*user_config_dirs(given), configs_dir(), *outside]


def config_files(group: str, given: Sequence[Path] = ()) -> dict[str, Path]:
    """The YAML files of a group by name, sorted; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in config_dirs(given):
        for path in (folder / group).glob("*.yaml"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


@cache
def runners_dir() -> Path:
    """The folder of the shipped runners; makes `privlm.runners` importable in a plain checkout too."""
    spec = importlib.util.find_spec("privlm.runners")
    if spec is None:
        folder = Path(__file__).resolve().parent.parent / "runners"
        spec = importlib.util.spec_from_file_location(
            "privlm.runners", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["privlm.runners"] = module
        spec.loader.exec_module(module)
    assert spec.origin is not None
    return Path(spec.origin).parent


def _outside_tasks() -> dict[str, TaskEntry]:
    found = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        spec = importlib.util.find_spec(point.value)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        config_dir = folder / "configs"
        found[point.name] = TaskEntry(point.name, point.value, folder, config_dir if config_dir.is_dir() else None)
    return found
