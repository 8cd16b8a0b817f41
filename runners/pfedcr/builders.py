"""`privlm build lines`: rendered lines as files, for a look at them or for another program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from privlm import files
from privlm.errors import UsageError
from privlm.schema import defaults, require_packages

from .config import LinesConfig, RecogniserConfig

DATA, MODEL = "rendered_lines", "crnn_small"
"""The YAML files whose values count where no word says otherwise."""


def lines(folder: Path, words: Sequence[str]) -> str:
    """Rendered text lines of each organisation: images and labels.tsv in a folder of its own, with alphabet.txt.

    words: fields of the data and, of the model, height and max_width: num_train_lines=100 difficulty=hard height=32.
    Returns what was made, in a sentence. Raises UsageError for an unknown field or value.
    """
    from omegaconf import OmegaConf

    require_packages("privlm build lines", "PIL", extra="ocr")
    given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    of_model = {name: given.pop(name) for name in ("height", "max_width") if name in given}
    data, model = defaults(LinesConfig, "data", DATA, **given), defaults(RecogniserConfig, "model", MODEL, **of_model)
    config = SimpleNamespace(data=data, model=model, privacy=SimpleNamespace(mechanism="none"))
    _refuse_problems(data, config)
    from .data import load

    made = load(config)
    for client in made.clients:
        _write(folder / client.name, {"train": client.train, "test": client.test}, made.alphabet.symbols)
    number = sum(len(client.train) + len(client.test) for client in made.clients)
    return f"{number:,} lines of {len(made)} clients"


def _refuse_problems(data: LinesConfig, config: SimpleNamespace) -> None:
    from omegaconf import OmegaConf

    from privlm.schema import problems

    found = problems(OmegaConf.structured(data), config, "")
    if found:
        raise UsageError("\n".join(found))


def _write(folder: Path, splits: dict[str, list], symbols: str) -> None:
    """A label that was made wrong on purpose stands there as it is."""
    from PIL import Image

    folder.mkdir(parents=True)
    rows = ["image\ttext\tsplit"]
    for split, of_split in splits.items():
        for number, line in enumerate(of_split):
            name = f"{split}-{number:05d}.png"
            Image.fromarray(line.image).save(folder / name)
            rows.append(f"{name}\t{line.text}\t{split}")
    files.write_text(folder / "labels.tsv", "\n".join(rows) + "\n")
    files.write_text(folder / "alphabet.txt", symbols + "\n")


BUILDERS = {"lines": lines}
