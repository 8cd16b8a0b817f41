"""docs/coverage.md says what is exact: it shrinks for nobody, and some of its cells are measured here."""

from types import ModuleType

import pytest
from support import benchmarks

METHODS = ("full", "lora", "dora", "ia3", "prefix", "prompt")
EXACT = {
    "bert": METHODS,
    "roberta": METHODS,
    "distilbert": ("full", "lora", "dora", "ia3", "prompt"),
    "deberta-v2": ("full", "lora", "dora", "ia3", "prompt"),
    "electra": METHODS,
    "albert": ("full", "lora", "dora", "ia3", "prompt"),
    "gpt2": METHODS,
    "gpt_neo": METHODS,
    "gptj": METHODS,
    "gpt_neox": METHODS,
    "opt": METHODS,
    "bloom": METHODS,
    "llama": METHODS,
    "qwen2": METHODS,
    "qwen3": METHODS,
    "mistral": METHODS,
    "mixtral": METHODS,
    "gemma": METHODS,
    "gemma2": METHODS,
    "gemma3": METHODS,
    "phi": METHODS,
    "t5": METHODS,
    "bart": METHODS,
    "vit": ("full", "lora", "dora", "ia3"),
    "whisper": ("full", "lora", "dora", "ia3"),
    "mamba": ("full", "lora", "dora", "ia3"),
}
"""What has been exact once; what is missing cannot be built with peft."""


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    return benchmarks.script("clipping_coverage")


def test_the_page_names_all_that_has_been_exact(coverage: ModuleType) -> None:
    head, _, *rows = [line for line in coverage.PAGE.read_text().split("\n## ")[0].splitlines() if line.startswith("|")]
    methods = [cell.strip() for cell in head.split("|")[2:-1]]
    found = {}
    for row in rows:
        architecture, *cells = [cell.strip() for cell in row.split("|")[1:-1]]
        found[architecture] = {name for name, cell in zip(methods, cells, strict=True) if cell.startswith("exact (")}
    assert {name: set(exact) - found.get(name, set()) for name, exact in EXACT.items()} == {
        name: set() for name in EXACT
    }


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("opt", "full"),
        ("t5", "full"),
        ("bart", "full"),
        ("vit", "full"),
        ("whisper", "full"),
        ("deberta-v2", "full"),
        ("gemma3", "full"),
        ("mamba", "full"),
        ("bert", "dora"),
        ("llama", "ia3"),
        ("gpt2", "prompt"),
        ("roberta", "prefix"),
    ],
)
def test_cell_is_exact(coverage: ModuleType, architecture: str, method: str) -> None:
    cell = coverage.measure(architecture, method)
    assert cell.is_exact, cell


def test_a_cell_is_one_sentence_where_it_is_not_exact(coverage: ModuleType) -> None:
    cells = {
        ("a", "full"): coverage.Cell(error=2e-7, ways=("Bare",)),
        ("a", "lora"): coverage.Cell(refusal="no:\n  layer: why"),
        ("b", "full"): coverage.Cell(error=2e-3),
        ("b", "lora"): coverage.Cell(refusal="no:\n  layer: why"),
    }
    with pytest.raises(AssertionError):
        coverage.page(cells)  # neither exact nor refused
    cells["b", "full"] = coverage.Cell(without="ValueError: not there")
    page = coverage.page(cells)
    assert "| a | exact (2e-07) | refused [1] |\n| b | none [2] | refused [1] |" in page
    assert "[1] refused: no:   layer: why\n" in page
    assert "| a, full | Bare |" in page
