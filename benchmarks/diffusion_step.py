"""What a training step of a diffusion model costs, beside the loop of diffusers' example and with privacy.

    python benchmarks/diffusion_step.py                 # the shape of tiny_sd, latents given
    python benchmarks/diffusion_step.py --train lora --batch 16 --write

All arms train one random UNet at the same batch, in one process and one thread; they take turns, and every round
begins with another. The loop is the inner part of diffusers' train_text_to_image.py: noise and timesteps of torch's
generator, add_noise, the frozen text encoder, mean squared error, accelerate's backward, clipping, AdamW. Ratios are
to that loop in the same round.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import report
import torch
from accelerate import Accelerator
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

from privlm.diffusion.denoiser import Denoiser
from privlm.diffusion.denoising import Denoising
from privlm.diffusion.latent_data import LatentData
from privlm.diffusion.tiny import modules
from privlm.diffusion.tiny.recipe import captioned
from privlm.diffusion.tiny.tokenizer import make_tokenizer
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import make_plan
from privlm.privacy.schema import PrivacyConfig
from privlm.schema import defaults
from privlm.training.modes import TrainingModes
from privlm.training.private import Private
from privlm.training.schema import TrainerConfig
from privlm.training.trainer import Trainer

NUM_WARM_UPS = 6  # the first looks of the privacy engine are not what a step costs
STEPS = 3  # of an arm in a round
LEARNING_RATE, MAX_NORM, LORA_RANK = 1e-4, 1.0, 8
LOOP, TRAINER, PRIVATE = "diffusers' example loop", "privlm", "privlm, private"

Step = Callable[[], None]


def model(train: str, tokenizer: Any) -> Denoiser:
    """The whole UNet or LoRA on its attention; the text encoder is frozen."""
    torch.manual_seed(0)
    unet = modules.make_unet()
    if train == "lora":
        unet.requires_grad_(False)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=targets))
    return Denoiser(unet, modules.make_text_encoder(tokenizer).requires_grad_(False).eval())


def data(batch_size: int, tokenizer: Any) -> LatentData:
    random = torch.Generator().manual_seed(1)
    shape = (batch_size, modules.LATENT_CHANNELS, modules.LATENT_SIZE, modules.LATENT_SIZE)
    ids = torch.randint(0, len(tokenizer), (batch_size, tokenizer.model_max_length), generator=random)
    return captioned(torch.randn(shape, generator=random), ids)


def loop(denoiser: Denoiser, rows: dict[str, Tensor]) -> Iterator[None]:
    """A step each time it is asked."""
    accelerator, schedule = Accelerator(cpu=True), modules.make_scheduler()
    parameters = [value for value in denoiser.unet.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    unet, optimizer = accelerator.prepare(denoiser.unet, optimizer)
    unet.train()
    while True:
        latents = rows["latents"]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
        noisy = schedule.add_noise(latents, noise, timesteps)
        states = denoiser.text_encoder(rows["input_ids"])[0]
        predicted = unet(noisy, timesteps, states, return_dict=False)[0]
        accelerator.backward(F.mse_loss(predicted.float(), latents.float()))
        accelerator.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        yield


def trained(denoiser: Denoiser, rows: LatentData, private: Private | None) -> Iterator[None]:
    """The same by the Trainer; what is read now and then (trainer.log_every) is read every tenth step."""
    settings = defaults(
        TrainerConfig,
        "trainer",
        "single",
        batch_size=len(rows),
        micro_batch_size=len(rows),
        learning_rate=LEARNING_RATE,
        max_grad_norm=None if private else MAX_NORM,
    )
    plain = SimpleNamespace(snr_gamma=None, noise_offset=0.0, caption_dropout=0.0)
    trainer = Trainer(denoiser, Denoising(modules.make_scheduler(), plain), rows, settings, private=private)
    with ExitStack() as stack:
        modes = stack.enter_context(TrainingModes(trainer.model))
        gradient = stack.enter_context(trainer.stepper.gradient())
        step = 0
        while True:
            step += 1
            modes.train()
            trainer.stepper.take(gradient, step, 10**6, is_read=step % 10 == 0)
            yield


def protection(batch_size: int) -> Private:
    """All rows at every step, so that the batch is as large as that of the others."""
    privacy = defaults(
        PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, rng="reproducible", delta=1e-5
    )
    return Private(
        make_plan(privacy, dataset_size=batch_size, batch_size=batch_size, steps=10**4, compare=False), Ledger()
    )


def measure(train: str, batch_size: int, num_rounds: int) -> dict[str, list[float]]:
    """Arm -> CPU seconds of a step, by round."""
    tokenizer = make_tokenizer()
    rows = data(batch_size, tokenizer)
    arms = {
        LOOP: loop(model(train, tokenizer), rows.batch(np.arange(batch_size))),
        TRAINER: trained(model(train, tokenizer), rows, None),
        PRIVATE: trained(model(train, tokenizer), rows, protection(batch_size)),
    }
    for arm in arms.values():
        take(arm, NUM_WARM_UPS)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(num_rounds):
        names = list(arms)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.process_time()
            take(arms[name], STEPS)
            seconds[name].append((time.process_time() - began) / STEPS)
    return seconds


def take(arm: Iterator[None], steps: int) -> None:
    for _ in range(steps):
        next(arm)


def table(seconds: dict[str, list[float]]) -> str:
    lines = ["| | ms a step | over the loop (quartiles) | over privlm |", "|--|--|--|--|"]
    for name, values in seconds.items():
        over_loop, over_ours = (np.array(values) / np.array(seconds[other]) for other in (LOOP, TRAINER))
        times, ratio = f"{1000 * np.median(values):.0f}", f"{np.median(over_ours):.2f}"
        lines.append(f"| {name} | {times} | {report.spread(list(over_loop))} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=("full", "lora"), default="full")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="put the section into BENCHMARKS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = table(measure(arguments.train, arguments.batch, arguments.rounds))
    text += "\n\n" + report.conditions(arguments.rounds, "torch", "diffusers", "peft", "accelerate")
    print(text)
    if arguments.write:
        title = f"## A step of a diffusion model: {arguments.train}, batch {arguments.batch}"
        report.write(f"diffusion_step {arguments.train} {arguments.batch}", f"{title}\n\n{text}")


if __name__ == "__main__":
    main()
