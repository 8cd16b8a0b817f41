"""What a private training step costs, against the ordinary step and against Opacus.

    python benchmarks/dp_step.py                                  # tiny model, seconds
    python benchmarks/dp_step.py --model roberta-base-shape --write

Every engine has a process of its own (one thread, random weights, fp32, SGD, dropout 0) and they take turns:
in each round every engine does one micro-step (forward, backward, clip, accumulate) and one release (noise,
optimizer step), in CPU seconds. Ratios are to the non-private step of the same round. First the clipped sums
of all private engines are compared.
"""

import argparse
import importlib.util
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import report
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 5000,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    "roberta-base-shape": {
        "vocab_size": 50265,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
Batch = dict[str, Tensor]


class Engine(Protocol):
    """One way to train."""

    def micro_step(self, batch: Batch) -> None: ...

    def release(self) -> None: ...


class PrivateEngine(Engine, Protocol):
    """One way to train privately. `clipped_sum` is called instead of a first `release`."""

    def clipped_sum(self) -> Tensor: ...


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits, batch["labels"], reduction="none")


class NonPrivate:
    def __init__(self, model: nn.Module, batch_size: int) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(trainable(model), lr=1e-3)

    def micro_step(self, batch: Batch) -> None:
        losses(self.model, batch).mean().backward()

    def release(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class PrivLM:
    def __init__(self, model: nn.Module, batch_size: int) -> None:
        from privlm.privacy.engine import PrivacyEngine
        from privlm.privacy.ledger import Ledger
        from privlm.privacy.noise import ReproducibleNoise

        self.model = model
        self.batch_size = batch_size
        self.engine = PrivacyEngine(model, clipping_norm=CLIPPING_NORM)
        self.noise, self.ledger, self.step = ReproducibleNoise(0), Ledger(), 0
        self.optimizer = torch.optim.SGD(trainable(model), lr=1e-3)

    def micro_step(self, batch: Batch) -> None:
        with self.engine.recording():
            self.engine.backward(losses(self.model, batch))

    def clipped_sum(self) -> Tensor:
        self._write_gradient(noise_multiplier=0.0, expected_batch_size=1.0)
        gradients = [parameter.grad for parameter in trainable(self.model) if parameter.grad is not None]
        total = nn.utils.parameters_to_vector(gradients)
        self.optimizer.zero_grad()
        return total

    def release(self) -> None:
        self._write_gradient(NOISE_MULTIPLIER, self.batch_size)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _write_gradient(self, noise_multiplier: float, expected_batch_size: float) -> None:
        self.engine.release(
            self.noise,
            step=self.step,
            sampling_rate=0.01,
            noise_multiplier=noise_multiplier,
            expected_batch_size=expected_batch_size,
            world=None,
            ledger=self.ledger,
        )
        self.step += 1


class OpacusHooks:
    """Per-sample gradients of every layer by backward hooks."""

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        from opacus.grad_sample import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.model: Any = GradSampleModule(model, loss_reduction="sum", strict=False)
        self.optimizer: Any = DPOptimizer(
            torch.optim.SGD(trainable(model), lr=1e-3),
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=CLIPPING_NORM,
            expected_batch_size=batch_size,
            loss_reduction="sum",
        )

    def micro_step(self, batch: Batch) -> None:
        losses(self.model, batch).sum().backward()
        self.optimizer.signal_skip_step(do_skip=True)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def clipped_sum(self) -> Tensor:
        total = torch.cat([parameter.summed_grad.flatten() for parameter in self.optimizer.params])
        self._forget_sums()
        return total

    def release(self) -> None:
        self.optimizer.add_noise()
        self.optimizer.scale_grad()
        self.optimizer.original_optimizer.step()
        self.optimizer.original_optimizer.zero_grad()
        self._forget_sums()

    def _forget_sums(self) -> None:
        for parameter in self.optimizer.params:
            parameter.summed_grad = None


class OpacusGhost(OpacusHooks):
    """Ghost clipping: norms in a first backward pass, the weighted sum in a second."""

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        self.model = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=CLIPPING_NORM, loss_reduction="sum", strict=False
        )
        self.optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(trainable(model), lr=1e-3),
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=CLIPPING_NORM,
            expected_batch_size=batch_size,
            loss_reduction="sum",
        )
        self.criterion = DPLossFastGradientClipping(
            self.model, self.optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum"
        )

    def micro_step(self, batch: Batch) -> None:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        self.criterion(logits, batch["labels"]).backward()
        self.optimizer.signal_skip_step(do_skip=True)
        self.optimizer.step()
        self.optimizer.zero_grad()


NON_PRIVATE = "non-private"
PRIVATE_ENGINES: dict[str, Callable[[nn.Module, int], PrivateEngine]] = {
    "privlm": PrivLM,
    "opacus ghost": OpacusGhost,
    "opacus hooks": OpacusHooks,
}


@dataclass(frozen=True)
class Workload:
    model: str
    training: str  # dense or lora
    batch_size: int
    num_tokens: int

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = transformers.RobertaConfig(
            **SHAPES[self.model],
            max_position_embeddings=514,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model: nn.Module = transformers.RobertaForSequenceClassification(config)
        if self.training == "lora":
            lora = LoraConfig(r=8, lora_dropout=0.0, task_type="SEQ_CLS", target_modules=["query", "value"])
            model = get_peft_model(model, lora)
        return model.train()

    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch_size, self.num_tokens)
        ids_BT = torch.randint(3, SHAPES[self.model]["vocab_size"], shape, generator=generator)
        length_B = torch.randint(self.num_tokens // 2, self.num_tokens + 1, shape[:1], generator=generator)
        mask_BT = (torch.arange(self.num_tokens) < length_B[:, None]).long()
        labels_B = torch.randint(0, 2, shape[:1], generator=generator)
        return {"input_ids": ids_BT.where(mask_BT > 0, 1), "attention_mask": mask_BT, "labels": labels_B}


@dataclass(frozen=True)
class Round:
    micro_step_s: float  # CPU seconds
    release_s: float
    peak_rss_mb: float


def work(name: str, workload: Workload, pipe: Connection) -> None:
    """One engine's process: sends a sample of its clipped sum (None of the ordinary step), then a `Round` a message."""
    torch.set_num_threads(1)
    batch = workload.batch()
    engine: Engine
    if name == NON_PRIVATE:
        engine = NonPrivate(workload.build(), workload.batch_size)
        engine.micro_step(batch)
        pipe.send(None)
    else:
        engine = private = PRIVATE_ENGINES[name](workload.build(), workload.batch_size)
        engine.micro_step(batch)
        total = private.clipped_sum()
        pipe.send(total[:: max(1, total.numel() // 1_000_000)].numpy())
        del total
        engine.micro_step(batch)
    engine.release()
    while pipe.recv():
        start = time.process_time()
        engine.micro_step(batch)
        middle = time.process_time()
        engine.release()
        end = time.process_time()
        peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send(Round(middle - start, end - middle, peak_rss_mb))


def measure(workload: Workload, names: list[str], num_rounds: int) -> dict[str, list[Round]]:
    """Rounds of every engine, taken in turn. Raises SystemExit where engines disagree about the clipped sum."""
    context = get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    sums: dict[str, np.ndarray] = {}
    for name in names:  # one after the other: warm-up steps need the most memory
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=work, args=(name, workload, theirs), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        sums[name] = pipes[name].recv()
    for name in names:
        if sums[name] is not None and name != "privlm":
            difference = np.linalg.norm(sums[name] - sums["privlm"]) / np.linalg.norm(sums["privlm"])
            print(
                f"{workload.training}: clipped sum of {name} differs from privlm's by {difference:.1e}", file=sys.stderr
            )
            if not difference < 1e-3:
                raise SystemExit("the engines disagree about the clipped sum: nothing to compare")
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    for _ in range(num_rounds):
        for name in names:
            pipes[name].send(True)
            rounds[name].append(pipes[name].recv())
    for name in names:
        pipes[name].send(False)
    for process in processes:
        process.join()
    return rounds


def table(rounds: dict[str, list[Round]], micro_batches: int) -> list[str]:
    """Markdown rows; `micro_batches` micro-steps share one release in the column of the whole logical step."""
    base = rounds[NON_PRIVATE]
    lines = []
    for name, own in rounds.items():
        micro = [mine.micro_step_s / theirs.micro_step_s for mine, theirs in zip(own, base, strict=True)]
        logical = [
            (micro_batches * mine.micro_step_s + mine.release_s)
            / (micro_batches * theirs.micro_step_s + theirs.release_s)
            for mine, theirs in zip(own, base, strict=True)
        ]
        peak = max(mine.peak_rss_mb for mine in own)
        base_peak = max(theirs.peak_rss_mb for theirs in base)
        lines.append(
            f"| {name} | {np.median([mine.micro_step_s for mine in own]):.3f} | {report.spread(micro)} "
            f"| {np.median([mine.release_s for mine in own]):.3f} | {report.spread(logical)} "
            f"| {peak:.0f} | {peak / base_peak:.2f} |"
        )
    return lines


def section(arguments: argparse.Namespace, training: str, lines: list[str]) -> str:
    return "\n".join(
        [
            f"## {arguments.model}, {training}, batch {arguments.batch}, {arguments.tokens} tokens",
            "",
            f"| engine | micro-step, CPU s | x non-private (quartiles) | release, CPU s "
            f"| logical step of {arguments.micro_batches} micro-steps, x non-private | peak RSS, MB | x non-private |",
            "|--|--|--|--|--|--|--|",
            *lines,
            "",
            report.conditions(arguments.rounds, "torch", "transformers", "peft", "opacus"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="tiny")
    parser.add_argument("--training", choices=["dense", "lora"], nargs="+", default=["dense", "lora"])
    parser.add_argument(
        "--engines", choices=list(PRIVATE_ENGINES), nargs="+", default=list(PRIVATE_ENGINES), help="beside privlm"
    )
    parser.add_argument("--batch", type=int, default=16, help="records of a micro-batch")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=16, help="micro-steps that share a release in the table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {report.REPORT.name}")
    arguments = parser.parse_args()
    names = [
        name
        for name in (NON_PRIVATE, *PRIVATE_ENGINES)
        if name in {NON_PRIVATE, "privlm", *arguments.engines}
        and (not name.startswith("opacus") or importlib.util.find_spec("opacus"))
    ]
    for training in arguments.training:
        workload = Workload(arguments.model, training, arguments.batch, arguments.tokens)
        rounds = measure(workload, names, arguments.rounds)
        text = section(arguments, training, table(rounds, arguments.micro_batches))
        print(text, flush=True)
        if arguments.write:
            report.write(f"{arguments.model} {training} {arguments.batch} {arguments.tokens}", text)


if __name__ == "__main__":
    main()
