"""The curriculum that takes a recogniser off CTC's plateau, on the server's lines: no client has a part in it.

Single characters and pairs come first, then longer lines. From whole lines at once the label prior is learned, and
little else (README.md has figures).
"""

from __future__ import annotations

from typing import Any

from privlm.config import Config, TrainerConfig
from privlm.fit import fit, load_trained
from privlm.job import Job
from privlm.models.loaded import Loaded

from .ctc import CTC
from .fonts import require_fonts
from .line_data import LineData
from .partial_training import WITHOUT_EVALUATION, changed
from .rendered import LONG, SERVER_FONTS, SHORT, virtual_lines
from .start_run import STAGES, start_folder


def warm_start(config: Config, job: Job, loaded: Loaded) -> bool:
    """Trains `loaded.model` in place, in the stages STAGES, or takes the warm start of task.start_run.

    Returns whether there was any.
    """
    start = config.task.warm_start
    if config.task.start_run is not None:
        load_trained(loaded, start_folder(config.task.start_run))
        loaded.model.to(job.accelerator.device)
        return True
    parts = (
        (SHORT, start.short_images, start.short_steps, start.short_batch_size),
        (LONG, start.line_images, start.line_steps, start.line_batch_size),
    )
    for name, (sizes, num_lines, steps, batch_size) in zip(STAGES, parts, strict=True):
        if steps:
            with job.stage(name) as stage:
                data = server_lines(config, loaded.tokenizer, num_lines, sizes, name)
                trainer = _trainer(config.trainer, start.learning_rate, batch_size)
                fit(stage, loaded, CTC(), data, steps=steps, public=True, trainer=trainer)
    return bool(start.short_steps + start.line_steps)


def server_lines(config: Config, alphabet: Any, num_lines: int, sizes: tuple[int, int], purpose: str) -> LineData:
    """Balanced virtual lines, a function of the run's seed and the purpose."""
    paths = require_fonts(SERVER_FONTS[config.task.server.fonts], config.data.fonts)
    lines = virtual_lines(alphabet, num_lines, sizes, paths, config.model.height, purpose, config.seed)
    return LineData(lines, alphabet)


def _trainer(trainer: Any, learning_rate: float, batch_size: int) -> TrainerConfig:
    """The run's own training with one cycle of another rate; its other rates keep their ratio to it."""
    ratio = learning_rate / trainer.learning_rate
    return changed(
        trainer,
        learning_rate=learning_rate,
        learning_rates={part: rate * ratio for part, rate in trainer.learning_rates.items()},
        batch_size=batch_size,
        micro_batch_size=batch_size,
        schedule="onecycle",
        warmup_steps=0,
        warmup_share=None,
        final_learning_rate=None,
        **WITHOUT_EVALUATION,
    )
