"""The scripts of benchmarks/, as modules: what they measure in full, tests measure in part."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """Skips the test where there is no such folder, as in an installed package."""
    if not FOLDER.is_dir():
        pytest.skip("not a checkout: no folder benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module(name)
