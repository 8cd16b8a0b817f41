"""The trained system of a run at work: `privlm predict|evaluate|export RUN`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from privlm.config import Config
from privlm.diffusion.images import load_images
from privlm.diffusion.judging import judge
from privlm.diffusion.lora import save_lora
from privlm.diffusion.pipelines import open_pipeline
from privlm.errors import PrivLMError, UsageError
from privlm.files import read_json
from privlm.fit import load_trained
from privlm.metrics.estimate import Estimate
from privlm.predictor import Row
from privlm.rundir import MODEL

from . import artefact
from .adapter import SurAdapter
from .drawing import Artist, seed_of
from .evaluation import STYLES
from .generate import TRAIN
from .losses import SurModel
from .system import System, test_of
from .vectors import Vectors

PROGRAM, TOLERANCE = "adapter.pt2", 1e-4


def predictor(config: Config, folder: Path) -> Illustrator:
    """The system of the finished run in `folder`. Raises UsageError where its files are absent or have changed."""
    trained = folder / "stages" / TRAIN / MODEL
    system = System.of(config, open_pipeline(config.model), _vectors_of(trained))
    load_trained(system.loaded, trained)
    return Illustrator(config, system)


def _vectors_of(trained: Path) -> Vectors | None:
    """Of the width that the saved projection takes; none are read any more."""
    about = read_json(trained / artefact.ABOUT)
    if about is None or about["llm"] is None:
        return None
    return Vectors({"": torch.zeros(1, about["llm"]["width"])}, about["llm"])


class Illustrator:
    """See privlm.predictor.Predictor."""

    def __init__(self, config: Config, system: System) -> None:
        self.config = config
        self.system = system
        self.artist: Artist = system.artist()

    def predict(self, rows: Iterable[Row]) -> Iterator[Row]:
        """An image of each row's prompt as a data URL of a PNG, and the seed that it was drawn from: the row's, where
        it has one. Raises UsageError for a row without a prompt.
        """
        numbered = enumerate(rows)
        while batch := list(islice(numbered, self.config.task.sampling.batch_size)):
            prompts = [_prompt(row, place + 1) for place, row in batch]
            seeds = [_seed(row, place, self.config.seed) for place, row in batch]
            for image, seed in zip(self.artist.draw(prompts, seeds), seeds, strict=True):
                yield {"image": _data_url(image), "seed": seed}

    def evaluate(self, data: Any) -> Mapping[str, Mapping[str, Estimate | float]]:
        """The accuracies of both judges on the test prompts of shapes, as sentences and as keywords.

        Raises UsageError for data that name no scenes.
        """
        if not hasattr(data, "caption_style"):
            raise UsageError(f"data: '{data.name}' is data of another kind; this model draws images: data=shapes")
        test = test_of(_with_data(self.config, data), load_images(data))
        if test.scenes is None:
            raise UsageError(f"data: '{data.name}' names no scenes of shapes, by which images could be judged")
        seeds = [seed_of(self.config.seed, place) for place in range(len(test.rows))]
        images = {style: self.artist.draw(test.prompts(style), seeds) for style in STYLES}
        return {style: judge(images[style], test.scenes, units=test.units).estimates() for style in STYLES}

    def export(self, folder: Path) -> None:
        """Of a UNet with low-rank pairs, the file that diffusers reads; of a whole one, its folder; of the adapter
        `adapter.pt2`, states [B, L, d] -> adapted states, a program that torch.export.load reads without PrivLM.

        Raises PrivLMError where what was written does not compute what was trained.
        """
        model = self.system.loaded.model
        if isinstance(model, SurModel):
            _export_adapter(model.adapter.eval().cpu(), folder)
        elif self.config.adapter.name == "lora":
            save_lora(folder, unet=model.unet)
        else:
            unet: Any = model.get_submodule("unet")
            unet.save_pretrained(folder / "unet")


def _export_adapter(adapter: SurAdapter, folder: Path) -> None:
    sample = torch.linspace(-1, 1, 3 * 8 * adapter.width).reshape(3, 8, adapter.width)
    dimensions = {0: torch.export.Dim("prompts"), 1: torch.export.Dim("tokens")}
    program = torch.export.export(_States(adapter), (sample,), dynamic_shapes=(dimensions,))
    torch.export.save(program, folder / PROGRAM)
    told = {
        "input": f"float32 [prompts, tokens, {adapter.width}], last hidden states of the text encoder",
        "eta": adapter.eta,
    }
    (folder / "adapter.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    again = torch.export.load(folder / PROGRAM).module()
    with torch.no_grad():
        apart = float((again(sample[:2, :5]) - adapter(sample[:2, :5]).states).abs().max())
    if not apart <= TOLERANCE:
        raise PrivLMError(f"{folder}: the exported adapter is not the trained one: {apart:.3g} apart")


class _States(torch.nn.Module):
    def __init__(self, adapter: SurAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.adapter(states).states


def _with_data(config: Config, data: Any) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(task=config.task, data=data, seed=config.seed)


def _prompt(row: Row, number: int) -> str:
    prompt = row.get("prompt") or row.get("text")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"row {number}: no prompt in column 'prompt' or 'text'; the columns are {', '.join(row)}")
    return prompt


def _seed(row: Row, place: int, of_run: int) -> int:
    """A table has an empty cell where a row names none. Raises UsageError for what is no whole number from 0 on."""
    given = row.get("seed")
    if given is None or given == "":
        return seed_of(of_run, place)
    if isinstance(given, bool) or not str(given).isdecimal():
        raise UsageError(f"row {place + 1}: seed '{given}' is no whole number from 0 on")
    return int(given)


def _data_url(image: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
