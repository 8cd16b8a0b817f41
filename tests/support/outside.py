"""The outside package of tests/fixtures, installed: its folder holds the package and its metadata."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privlm import registry

PACKAGE = Path(__file__).resolve().parents[1] / "fixtures" / "outside_task"


@contextmanager
def installed() -> Iterator[None]:
    """In this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE)
        registry.tasks.cache_clear()
        yield
    registry.tasks.cache_clear()
