"""What a run of SUR-adapter would do and cost, for `--dry-run`. No torch."""

from __future__ import annotations

from typing import Any

from privlm import forecast
from privlm.config import Config
from privlm.diffusion.images import load_images
from privlm.training.batches import num_steps

from .config import asks_llm, weights_of


def plan(config: Config) -> dict[str, Any]:
    """Name -> value, under the names of result.json where there is one."""
    images, task, trainer = load_images(config.data), config.task, config.trainer
    steps = num_steps(trainer, len(images.train))
    num_drawn = min(task.judging.num_images, len(images.test))
    names = ("batch_size", "micro_batch_size", "learning_rate", "schedule", "warmup_steps", "max_grad_norm")
    passes = 4 * num_drawn * task.sampling.steps * (2 if task.sampling.guidance_scale > 1 else 1)
    return {
        "training_examples": len(images.train),
        "steps": steps,
        **{name: trainer[name] for name in (*names, "precision")},
        **weights_of(task)._asdict(),
        "sentences read by the language model": _num_read(images) if asks_llm(task) else 0,
        "images drawn": 4 * num_drawn,
        "passes of the UNet for them": passes,
        **forecast.privacy(config, dataset_size=len(images.train), steps=steps),
        "notes": list(images.notes),
    }


def _num_read(images: Any) -> int:
    return len({row.text for row in (*images.train, *images.validation)})
