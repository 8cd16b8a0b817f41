"""The rules of the house: imports run downward, and runners know nothing of each other."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch_free

ROOT = Path(__file__).resolve().parents[1]
FILES = [path.relative_to(ROOT) for folder in ("privlm", "runners") for path in sorted((ROOT / folder).rglob("*.py"))]

LAYERS = [
    {"errors", "files", "masking", "signals", "progress", "hub", "schema", "identity"},
    {"privacy", "adapters", "data", "models", "metrics"},
    {"training"},
    {"federated", "diffusion", "llm"},
    {"environment", "rundir", "job", "tracking", "config"},
    {"runners"},
    {"registry", "launch", "report"},
    {"cli"},
]
"""Parts of privlm from the lowest layer up; a module imports from its own layer and those below."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported(path):
    """Absolute names of all modules that a file imports, in functions too."""
    package = ["privlm", *path.parent.parts] if path.parts[0] == "runners" else list(path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(path):
    return path.parts[0] if path.parts[0] == "runners" else path.with_suffix("").parts[1]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_run_downward(path):
    here = part_of(path)
    if here in ("__init__", "__main__"):
        return
    assert here in LEVEL, f"give {here} its layer"
    for name in imported(path):
        _, _, rest = name.partition("privlm.")
        part = rest.split(".")[0]
        assert LEVEL.get(part, 0) <= LEVEL[here], f"{path} imports {name} from a layer above"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_second_copy_of_the_runners(path):
    """From the root of a checkout `import runners` works by accident and makes every class twice."""
    assert not [name for name in imported(path) if name.split(".")[0] in ("runners", "configs")]


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "runners"], ids=str)
def test_no_runner_imports_another(path):
    others = [name for name in imported(path) if name.startswith("privlm.runners.")]
    assert all(name.split(".")[2] == path.parts[1] for name in others)


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "privlm"], ids=str)
def test_only_the_registry_reaches_the_runners(path):
    assert not [name for name in imported(path) if name.startswith("privlm.runners")]


def test_runner_folders_are_complete():
    for folder in (path for path in (ROOT / "runners").iterdir() if (path / "config.py").exists()):
        assert {"__init__.py", "run.py"} <= {path.name for path in folder.iterdir()}
        assert (ROOT / "configs" / "task" / f"{folder.name}.yaml").exists()


def test_names_of_test_files_are_unique():
    """pytest imports them by name alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
