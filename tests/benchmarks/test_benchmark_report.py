"""Sections of BENCHMARKS.md are replaced where they stand."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(tmp_path, monkeypatch):
    if not BENCHMARKS.is_dir():
        pytest.skip("not a checkout: no folder benchmarks")
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("report")
    monkeypatch.setattr(module, "REPORT", tmp_path / "BENCHMARKS.md")
    module.REPORT.write_text("# Benchmarks\n\nHow.\n\n")
    return module


def test_a_section_keeps_its_place(report):
    for mark, text in (("a", "## A\n\nold"), ("b", "## B"), ("a", "## A\n\nnew\n")):
        report.write(mark, text)
    assert report.REPORT.read_text() == "# Benchmarks\n\nHow.\n\n<!-- a -->\n## A\n\nnew\n\n<!-- b -->\n## B\n"
