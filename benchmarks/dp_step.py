"""What a private training step costs, against the ordinary step and against Opacus.

    python benchmarks/dp_step.py                                  # tiny model, seconds
    python benchmarks/dp_step.py --model roberta-base-shape --write
    python benchmarks/dp_step.py --model gpt2-shape llama-shape --batch 4 --tokens 256 --vocabulary 32000

Every engine has a process of its own (one thread, random weights, fp32, SGD, dropout 0) and they take turns:
in each round every engine does one micro-step (forward, backward, clip, accumulate) and one release (noise,
optimizer step), in CPU seconds. Ratios are to the non-private step of the same round. First the clipped sums
of all private engines are compared.

Classifiers have padding. Causal models have full rows, positions by record and an output layer of its own, since
shared positions and a tied output layer are not what Opacus clips exactly; `--tied` measures that without Opacus.
"""

import argparse
import importlib.util
import itertools
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

NUM_WARM_UPS = 2  # the first looks of an engine are not what a step costs
CLIPPING_NORM = 1.0
NOISE_MULTIPLIER = 1.0
LORA_RANK = 8


@dataclass(frozen=True)
class Shape:
    """An architecture and its size."""

    config: type[transformers.PretrainedConfig]
    model: type[transformers.PreTrainedModel]
    settings: dict[str, Any]
    lora_targets: list[str]
    is_causal: bool = False
    vocabulary: int = 0


def _roberta(vocabulary: int, hidden: int, layers: int, heads: int) -> Shape:
    settings = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    settings |= {"intermediate_size": 4 * hidden, "max_position_embeddings": 514, "type_vocab_size": 1}
    settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    kind = transformers.RobertaForSequenceClassification
    return Shape(transformers.RobertaConfig, kind, settings, ["query", "value"], vocabulary=vocabulary)


SHAPES = {
    "tiny": _roberta(vocabulary=5000, hidden=128, layers=2, heads=2),
    "roberta-base-shape": _roberta(vocabulary=50265, hidden=768, layers=12, heads=12),
    "gpt2-shape": Shape(
        transformers.GPT2Config,
        transformers.GPT2LMHeadModel,
        {"n_embd": 256, "n_layer": 6, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        ["c_attn"],
        is_causal=True,
        vocabulary=8192,
    ),
    "llama-shape": Shape(
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4},
        ["q_proj", "v_proj"],
        is_causal=True,
        vocabulary=8192,
    ),
}
Batch = dict[str, Tensor]


class Engine(Protocol):
    """One way to train."""

    def micro_step(self, batch: Batch) -> None: ...

    def release(self) -> None: ...


class PrivateEngine(Engine, Protocol):
    """One way to train privately. `sample` is called instead of a first `release`: some elements of the clipped sum."""

    def sample(self) -> Tensor: ...


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """[B]: of a record, or the mean over its tokens."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    loss = F.cross_entropy(logits.flatten(0, -2), batch["labels"].flatten(), reduction="none")
    return loss.view(len(batch["labels"]), -1).mean(1)


def sample_of(sums: list[Tensor]) -> Tensor:
    """Some elements of each, about a million: a copy of all would be most of the memory that is measured."""
    stride = max(1, sum(total.numel() for total in sums) // 1_000_000)
    return torch.cat([total.flatten()[::stride] for total in sums])


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
        self.engine.backward(losses, batch)

    def sample(self) -> Tensor:
        self._write_gradient(noise_multiplier=0.0, expected_batch_size=1.0)
        found = sample_of([parameter.grad for parameter in trainable(self.model) if parameter.grad is not None])
        self.optimizer.zero_grad()
        return found

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

    def sample(self) -> Tensor:
        found = sample_of([parameter.summed_grad for parameter in self.optimizer.params])
        self._forget_sums()
        return found

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
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

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
        self.two_passes = partial(DPTensorFastGradientClipping, self.model, self.optimizer, loss_reduction="sum")

    def micro_step(self, batch: Batch) -> None:
        self.two_passes(loss_per_sample=losses(self.model, batch)).backward()
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

    vocabulary: int
    is_tied: bool = False
    device: str = "cpu"

    def __str__(self) -> str:
        size = f"vocabulary {self.vocabulary:,}, batch {self.batch_size}, {self.num_tokens} tokens"
        where = "" if self.device == "cpu" else f", {torch.cuda.get_device_name()}"
        return f"{self.model}{', tied output layer' * self.is_tied}, {self.training}, {size}{where}"

    def mark(self) -> str:
        """Of its section in BENCHMARKS.md."""
        words = [self.model, self.training, self.batch_size, self.num_tokens]
        words += [self.vocabulary] * SHAPES[self.model].is_causal + ["tied"] * self.is_tied
        return " ".join(map(str, [*words, *[self.device] * (self.device != "cpu")]))

    def clock(self) -> float:
        """CPU seconds of this process, or seconds by the clock once the GPU has done all."""
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def peak_mb(self) -> float:
        """Resident memory, or what torch has taken on the GPU."""
        if self.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return torch.cuda.max_memory_allocated() / 2**20

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        shape = SHAPES[self.model]
        settings = {**shape.settings, "vocab_size": self.vocabulary}
        if shape.is_causal:
            settings |= {"tie_word_embeddings": self.is_tied, "use_cache": False}
            settings |= {"bos_token_id": None, "eos_token_id": None}
        model: nn.Module = shape.model(shape.config(**settings))
        if self.training == "lora":
            task = "CAUSAL_LM" if shape.is_causal else "SEQ_CLS"
            targets = {"target_modules": shape.lora_targets, "fan_in_fan_out": self.model == "gpt2-shape"}
            model = get_peft_model(model, LoraConfig(r=LORA_RANK, lora_dropout=0.0, task_type=task, **targets))
        return model.train().to(self.device)

    def batch(self) -> Batch:
        return {name: value.to(self.device) for name, value in self._batch().items()}

    def _batch(self) -> Batch:
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch_size, self.num_tokens)
        if SHAPES[self.model].is_causal:
            ids_BT = torch.randint(0, self.vocabulary, (self.batch_size, self.num_tokens + 1), generator=generator)
            positions_BT = torch.arange(self.num_tokens).repeat(self.batch_size, 1)
            return {"input_ids": ids_BT[:, :-1].clone(), "position_ids": positions_BT, "labels": ids_BT[:, 1:].clone()}
        ids_BT = torch.randint(3, self.vocabulary, shape, generator=generator)
        length_B = torch.randint(self.num_tokens // 2, self.num_tokens + 1, shape[:1], generator=generator)
        mask_BT = (torch.arange(self.num_tokens) < length_B[:, None]).long()
        labels_B = torch.randint(0, 2, shape[:1], generator=generator)
        return {"input_ids": ids_BT.where(mask_BT > 0, 1), "attention_mask": mask_BT, "labels": labels_B}


@dataclass(frozen=True)
class Round:
    micro_step_s: float  # as Workload.clock counts
    release_s: float
    peak_mb: float


def work(name: str, workload: Workload, pipe: Connection) -> None:
    """One engine's process: sends a sample of its clipped sum (None of the ordinary step), then a `Round` a message."""
    torch.set_num_threads(1)
    batch = workload.batch()
    engine: Engine
    if name == NON_PRIVATE:
        engine = NonPrivate(workload.build(), workload.batch_size)
        pipe.send(None)
    else:
        engine = private = PRIVATE_ENGINES[name](workload.build(), workload.batch_size)
        engine.micro_step(batch)
        pipe.send(private.sample().cpu().numpy())
    for _ in range(NUM_WARM_UPS):
        engine.micro_step(batch)
        engine.release()
    while pipe.recv():
        start = workload.clock()
        engine.micro_step(batch)
        middle = workload.clock()
        engine.release()
        end = workload.clock()
        pipe.send(Round(middle - start, end - middle, workload.peak_mb()))


def measure(workload: Workload, names: list[str], num_rounds: int) -> dict[str, list[Round]]:
    """Rounds of every engine, taken in turn. Raises SystemExit where engines disagree about the clipped sum."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["peft", "transformers", "torch"])  # once for all, not in every engine's process
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
        peak = max(mine.peak_mb for mine in own)
        base_peak = max(theirs.peak_mb for theirs in base)
        lines.append(
            f"| {name} | {np.median([mine.micro_step_s for mine in own]):.3f} | {report.spread(micro)} "
            f"| {np.median([mine.release_s for mine in own]):.3f} | {report.spread(logical)} "
            f"| {peak:.0f} | {peak / base_peak:.2f} |"
        )
    return lines


def section(arguments: argparse.Namespace, workload: Workload, lines: list[str]) -> str:
    seconds, memory = ("CPU s", "RSS") if workload.device == "cpu" else ("s", "GPU memory")
    return "\n".join(
        [
            f"## {workload}",
            "",
            f"| engine | micro-step, {seconds} | x non-private (quartiles) | release, {seconds} "
            f"| logical step of {arguments.micro_batches} micro-steps, x non-private "
            f"| peak {memory}, MB | x non-private |",
            "|--|--|--|--|--|--|--|",
            *lines,
            "",
            report.conditions(arguments.rounds, "torch", "transformers", "peft", "opacus"),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), nargs="+", default=["tiny"])
    parser.add_argument("--training", choices=["dense", "lora"], nargs="+", default=["dense", "lora"])
    parser.add_argument(
        "--engines", choices=list(PRIVATE_ENGINES), nargs="+", default=list(PRIVATE_ENGINES), help="beside privlm"
    )
    parser.add_argument("--batch", type=int, default=16, help="records of a micro-batch")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, help="default: the model's own")
    parser.add_argument("--tied", action="store_true", help="output layer of causal models; without Opacus")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: seconds by the clock")
    parser.add_argument("--micro-batches", type=int, default=16, help="micro-steps that share a release in the table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {report.REPORT.name}")
    arguments = parser.parse_args()
    has_peers = importlib.util.find_spec("opacus") is not None and not arguments.tied
    names = [
        name
        for name in (NON_PRIVATE, *PRIVATE_ENGINES)
        if name in {NON_PRIVATE, "privlm", *arguments.engines} and (has_peers or not name.startswith("opacus"))
    ]
    for model, training in itertools.product(arguments.model, arguments.training):
        vocabulary = arguments.vocabulary or SHAPES[model].vocabulary
        workload = Workload(
            model, training, arguments.batch, arguments.tokens, vocabulary, arguments.tied, arguments.device
        )
        rounds = measure(workload, names, arguments.rounds)
        text = section(arguments, workload, table(rounds, arguments.micro_batches))
        print(text, flush=True)
        if arguments.write:
            report.write(workload.mark(), text)


if __name__ == "__main__":
    main()
