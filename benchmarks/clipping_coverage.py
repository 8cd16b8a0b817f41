"""Which models the privacy engine clips exactly: architectures x ways to train, each against a naive loop over records.

    python benchmarks/clipping_coverage.py --write               # docs/coverage.md, minutes on one core
    python benchmarks/clipping_coverage.py opt t5 --methods lora # some cells, printed

Tiny random models in float32, no dropout, padded batches where the model has masks. A cell is exact where the norms of
all records and every clipped sum agree with one ordinary backward pass per record.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from small_models import ARCHITECTURES, METHODS, Batch, batch_of, build, losses
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger
from privlm.privacy.noise import ReproducibleNoise

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
TOLERANCE = 1e-4
SHAPES = (5, 10), (5, 10), (4, 8), (6, 6)
"""Records and tokens of the batches: the engine learns its ways from the first two; then lengths like batch sizes."""


def engine_pass(engine: PrivacyEngine, batch: Batch) -> Tensor:
    """One recorded pass; norms [B]."""
    return engine.backward(losses, batch).norms


@dataclass
class Cell:
    """What came of one pair.

    error: the largest relative error of norms and clipped sums. ways: what began at other places than exact rules do.
    refusal: of the engine. without: why there is no such model. fault: an error of another kind, which must not be.
    """

    error: float | None = None
    ways: tuple[str, ...] = ()
    refusal: str | None = None
    without: str | None = None
    fault: str | None = None

    @property
    def is_exact(self) -> bool:
        return self.error is not None and self.error < TOLERANCE


def measure(architecture: str, method: str) -> Cell:
    """Builds the model, trains nothing, compares on batches of several shapes."""
    batches = [batch_of(architecture, *shape) for shape in SHAPES]
    try:
        model = build(architecture, method)
        losses(model, batches[0])
    except Exception as error:  # of peft or transformers, before the engine has been asked
        return Cell(without=f"{type(error).__name__}: {error}".partition("\n")[0])
    try:
        engine = PrivacyEngine(model, clipping_norm=float(naive(model, batches[0], 1.0)[0].median()))
        error = max(errors(engine, batches))
        return Cell(error=error, ways=tuple(sorted(set(engine.ways().values()))))
    except UsageError as refusal:
        return Cell(refusal=str(refusal))
    except Exception as error:  # neither exact nor refused
        return Cell(fault=f"{type(error).__name__}: {error}")


def errors(engine: PrivacyEngine, batches: list[Batch]) -> Iterator[float]:
    """Relative, of the norms and of the clipped sum of each batch."""
    model = engine.model
    for step, batch in enumerate(batches):
        norm_B, expected = naive(model, batch, engine.clipping_norm)
        found_B = engine_pass(engine, batch)
        engine.release(
            ReproducibleNoise(0), step=step, sampling_rate=0.5, noise_multiplier=0.0, expected_batch_size=1.0,
            world=None, ledger=Ledger(),
        )  # fmt: skip
        total = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.requires_grad])
        yield float(((found_B - norm_B).abs() / norm_B).max())
        yield float((total - expected).abs().max() / expected.abs().max())


def naive(model: nn.Module, batch: Batch, clipping_norm: float) -> tuple[Tensor, Tensor]:
    """Norms [B] and the clipped sum as one vector, from an ordinary backward pass for each record alone, in float64."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms, total = [], torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
    for i in range(len(next(iter(batch.values())))):
        loss_1 = losses(model, {name: value[i : i + 1] for name, value in batch.items()})
        gradients = torch.autograd.grad(loss_1.sum(), parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(parameter) if gradient is None else gradient).flatten().double()
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ]
        )
        norms.append(flat.norm())
        total += flat * min(1.0, clipping_norm / max(float(flat.norm()), 1e-30))
    return torch.stack(norms), total


def quiet() -> None:
    """Progress bars and notes of the libraries do not belong between our lines."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)


def measured(pairs: list[tuple[str, str]], num_workers: int) -> Iterator[tuple[tuple[str, str], Cell]]:
    quiet()
    if num_workers == 1:
        yield from ((pair, measure(*pair)) for pair in pairs)
        return
    with get_context("fork").Pool(num_workers) as pool:  # nothing has run yet that a fork could break
        yield from zip(pairs, pool.starmap(measure, pairs, chunksize=1), strict=True)


PROSE = """# Which models are clipped exactly

Written by {command}: tiny random models in float32 without dropout, in batches of
{shapes} records and tokens, padded where the model has masks; torch {torch},
transformers {transformers}, peft {peft}.

A cell is **exact** where the norm of every record and the clipped sum equal those of one ordinary backward pass for
each record alone, within {tolerance:.0e}; the largest relative error is beside it. Everything else is refused before
anything is released, or is not there to be trained: the notes say why.

"""

WAYS = """
## What costs more than one backward pass

Layers with an exact rule cost one. What has none (a bare parameter beside children, a weight used outside its layer, a
table that all records share) is differentiated once for each record of a micro-batch, beginning at the smallest module
around it that was seen to give what the losses give, else at the losses: little for the module that holds embeddings,
much for a whole encoder. `torch.func` is one pass of a single module for all records.

| | begins at |
|--|--|
"""


def page(cells: Mapping[tuple[str, str], Cell]) -> str:
    """docs/coverage.md"""
    architectures, methods = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    notes: dict[str, int] = {}

    def shown(cell: Cell) -> str:
        if cell.is_exact:
            return f"exact ({cell.error:.0e})"
        sentence = note(cell)
        number = notes.setdefault(sentence, len(notes) + 1)
        return f"{'none' if cell.without else 'refused'} [{number}]"

    lines = [f"| | {' | '.join(methods)} |", "|--" * (len(methods) + 1) + "|"]
    lines += [
        f"| {architecture} | {' | '.join(shown(cells[architecture, method]) for method in methods)} |"
        for architecture in architectures
    ]
    lines += ["", *(f"[{number}] {sentence}" + "\n" for sentence, number in notes.items())]
    ways = [
        f"| {architecture}, {method} | {', '.join(cells[architecture, method].ways)} |"
        for architecture, method in cells
        if cells[architecture, method].ways
    ]
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    shapes = ", ".join(f"{size} x {length}" for size, length in SHAPES)
    head = PROSE.format(
        command="`python benchmarks/clipping_coverage.py --write`", shapes=shapes, tolerance=TOLERANCE, **versions
    )
    return head + "\n".join(lines).rstrip() + "\n" + WAYS + "\n".join(ways) + "\n"


def note(cell: Cell) -> str:
    """One sentence, without the names of single layers, so that equal reasons share a note."""
    if cell.without:
        return f"peft cannot train it so: {cell.without}"
    assert cell.refusal is not None, cell
    return f"refused: {cell.refusal}".replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("architectures", nargs="*", metavar="architecture")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[1])}: all cells")
    options = parser.parse_args()
    if unknown := sorted(set(options.architectures) - set(ARCHITECTURES)):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(ARCHITECTURES)}")
    if options.write and (options.architectures or len(options.methods) < len(METHODS)):
        parser.error("--write takes all cells: leave out the names of architectures and methods")
    pairs = [(name, method) for name in options.architectures or ARCHITECTURES for method in options.methods]
    cells: dict[tuple[str, str], Cell] = {}
    for (architecture, method), cell in measured(pairs, options.workers):
        said = f"{cell.error:.1e}  {', '.join(cell.ways)}" if cell.error is not None else cell.fault or note(cell)
        print(f"{architecture:12} {method:7} {said}", flush=True)
        cells[architecture, method] = cell
    if options.write:
        PAGE.write_text(page(cells), encoding="utf-8")
    if wrong := [
        names for names, cell in cells.items() if cell.fault or (cell.error is not None and not cell.is_exact)
    ]:
        raise SystemExit(f"neither exact nor refused: {wrong}")


if __name__ == "__main__":
    main()
