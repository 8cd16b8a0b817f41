"""The rules of the house: imports run downward, nothing imports in a circle, runners know nothing of each other.

Each rule is a function of what files import, and is seen to bite on a tree with planted faults before it judges ours.
"""

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_free

ROOT = Path(__file__).resolve().parents[1]

FLOORS = (
    ("cli",),
    ("sweeps",),
    ("launch", "flower_launch", "workers", "processes"),
    ("runners",),
    ("fit", "forecast"),
    ("federated",),
    ("registry",),
    ("config",),
    ("job", "world", "kept_model", "reload_proof"),
    ("diffusion",),
    ("training",),
    ("llm",),
    ("adapters",),
    ("data",),
    ("models",),
    ("privacy", "report"),  # a table of noise multipliers computes what it shows
    ("tracking", "identity", "rundir", "records", "rows", "schema", "results", "predictor", "metrics", "hub", "errors",
     "files", "progress", "environment", "signals", "masking", "launchers",
     "leftovers", "content"),
)  # fmt: skip
"""The parts of privlm from the top floor down; a module imports from its own floor and from those below."""

FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

TASK_FILES = (
    "runners/{}/__init__.py", "runners/{}/run.py", "runners/{}/README.md", "configs/task/{}.yaml",
    "configs/recipe/{}_smoke.yaml", "configs/recipe/{}_small.yaml", "configs/recipe/{}_paper.yaml",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """name: absolute, with what is taken from the module. in_function: it waits until a function is called."""

    name: str
    in_function: bool = False


Graph = dict[str, list[Import]]
"""Module by its installed name (privlm.runners.ewtune.run) -> its imports, those of types alone included."""


def read_graph(root: Path) -> Graph:
    graph = {}
    for package in ("privlm", "runners"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = (*(("privlm",) if package == "runners" else ()), *parts)
            graph[".".join(name).removesuffix(".__init__")] = list(imports(ast.parse(path.read_text()), name[:-1]))
    return graph


def imports(tree: ast.AST, package: tuple[str, ...], *, in_function: bool = False) -> Iterator[Import]:
    """Of a file in `package`; import_module("...") is one too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (Import(f"{module}.{alias.name}", in_function) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (Import(word.value, in_function) for word in node.args[:1] if isinstance(word, ast.Constant))
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(node, package, in_function=inside)


def part(module: str) -> str:
    """privlm.training.trainer -> training"""
    return ([*module.split("."), ""])[1]


def arrows_up(graph: Graph) -> list[str]:
    """Imports from a floor above, those within functions too."""
    found = [f"{module} has no floor" for module in graph if part(module) not in ("", "__main__", *FLOOR)]
    return found + [
        f"{module} imports {imported.name}"
        for module, imported in pairs(graph)
        if imported.name.startswith("privlm.") and floor(imported.name) < floor_of(module)
    ]


def floor_of(module: str) -> int:
    """Where a module stands. The verbs of a runner are commands."""
    is_verbs = part(module) == "runners" and module.endswith(".verbs")
    return FLOOR["cli"] if is_verbs else FLOOR.get(part(module), -1)


def floor(name: str) -> int:
    """Of what is imported. The schema of a part needs no more than privlm.schema does."""
    is_schema = name.split(".")[2:3] == ["schema"]
    return FLOOR["schema"] if is_schema else FLOOR.get(part(name), 99)


def circle(graph: Graph) -> list[str]:
    """Modules that import each other in a circle; empty if there is none.

    An import within a function does not count: it waits until all modules are there. One of types alone counts.
    """
    nodes: dict[str, set[str]] = {module: set() for module in graph}
    for module, imported in pairs(graph):
        names = imported.name, imported.name.rpartition(".")[0]
        target = next((name for name in names if name in graph), None)
        if target is not None and not imported.in_function:
            nodes[module].add(target)
    try:
        graphlib.TopologicalSorter(nodes).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def acquaintances(graph: Graph) -> list[str]:
    """Imports of a runner from outside its folder, and imports that make a second copy of all its classes: from the
    root of a checkout `import runners` works by accident.
    """

    def is_stranger(module: str, name: str) -> bool:
        package, *inside = name.split(".")
        if inside[:1] == ["runners"]:
            return module.split(".")[1:3] != inside[:2]
        return package in ("runners", "configs")

    return [
        f"{module} imports {imported.name}" for module, imported in pairs(graph) if is_stranger(module, imported.name)
    ]


def pairs(graph: Graph) -> Iterator[tuple[str, Import]]:
    return ((module, imported) for module, found in graph.items() for imported in found)


def missing_files(root: Path) -> list[str]:
    tasks = [path.parent.name for path in (root / "runners").glob("*/config.py")]
    return [name for task in tasks for name in (file.format(task) for file in TASK_FILES) if not (root / name).exists()]


def doubled_tests(root: Path) -> list[str]:
    """Names of test files that stand twice: pytest imports them by name alone."""
    names = Counter(path.name for path in (root / "tests").rglob("test_*.py"))
    return [name for name, count in names.items() if count > 1]


def plant(root: Path, **files: str) -> Path:
    """A tree of files, `__` for the slashes of their names."""
    for name, content in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_imports_run_downward(tmp_path):
    plant(
        tmp_path,
        privlm__data__readers="from privlm import files\n",
        privlm__training__trainer="def run():\n    from privlm.fit import fit\n",
        privlm__attic="",
    )
    assert arrows_up(read_graph(tmp_path)) == [
        "privlm.attic has no floor",
        "privlm.training.trainer imports privlm.fit.fit",
    ]
    assert arrows_up(read_graph(ROOT)) == []


def test_nothing_imports_in_a_circle(tmp_path):
    plant(
        tmp_path,
        runners__toy__items="if TYPE_CHECKING:\n    from .grading import Grading\n",
        runners__toy__grading="from . import items\n",
        privlm__job="from privlm.training import canaries\n",
        privlm__training__canaries="def later():\n    from privlm import job\n",
    )
    assert set(circle(read_graph(tmp_path))) == {"privlm.runners.toy.items", "privlm.runners.toy.grading"}
    assert circle(read_graph(ROOT)) == []


def test_runners_know_nothing_of_each_other_and_only_the_registry_reaches_them(tmp_path):
    plant(
        tmp_path,
        runners__toy__run="from .config import Task\nfrom ..other.data import load\nimport runners.other\n",
        privlm__report__page="import importlib\n\ndef page():\n    importlib.import_module('privlm.runners.toy.run')\n",
        privlm__registry="def run(name):\n    importlib.import_module(f'privlm.runners.{name}.run')\n",
    )
    assert acquaintances(read_graph(tmp_path)) == [
        "privlm.report.page imports privlm.runners.toy.run",
        "privlm.runners.toy.run imports privlm.runners.other.data.load",
        "privlm.runners.toy.run imports runners.other",
    ]
    assert acquaintances(read_graph(ROOT)) == []


def test_folders_of_tasks_are_complete_and_names_of_test_files_unique(tmp_path):
    plant(tmp_path, runners__toy__config="", runners__toy__run="", tests__a__test_run="", tests__b__test_run="")
    assert missing_files(tmp_path) == [name.format("toy") for name in TASK_FILES if not name.endswith("run.py")]
    assert doubled_tests(tmp_path) == ["test_run.py"]
    assert missing_files(ROOT) == []
    assert doubled_tests(ROOT) == []
