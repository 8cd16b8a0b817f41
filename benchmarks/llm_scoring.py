"""Throughput of scoring with local weights, beside lm-evaluation-harness's hf backend on the same model and requests.

    python benchmarks/llm_scoring.py                  # SmolLM2, three workloads
    python benchmarks/llm_scoring.py --llm tiny       # seconds
    python benchmarks/llm_scoring.py --write

Both score with the one model object, on one thread, and take turns; the harness with each of its batch sizes. Before
anything is timed their log-likelihoods are compared, and a difference above 1e-3 nats ends the benchmark. Times are CPU
seconds, ratios are to PrivLM in the same round. `generate` has no peer here: tokens a second of greedy decoding.
"""

import argparse
import importlib.util
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch

from privlm.config import LocalLLMConfig, defaults
from privlm.llm.local.backend import LocalBackend
from privlm.llm.types import GenerateRequest, Sampling, Score, ScoreRequest

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "privlm" / "data" / "embedded" / "sms_spam" / "SMSSpamCollection"
TOLERANCE = 1e-3  # nats, of the sum over a continuation

WORKLOADS: dict[str, tuple[str, int, tuple[int, int], tuple[int, int]]] = {
    "long": ("one continuation of 10 to 40 words a context", 1, (20, 120), (10, 40)),
    "choice": ("four continuations of 1 to 8 words a context", 4, (20, 120), (1, 8)),
    "word": ("four continuations of one word a context", 4, (20, 120), (1, 1)),
}
"""Name -> what it is, continuations of a context, words of a context (from, to), words of a continuation (from, to)."""


def requests_of(workload: str, num_contexts: int) -> list[ScoreRequest]:
    """Consecutive words of real messages."""
    _, num_options, context_words, option_words = WORKLOADS[workload]
    rng = random.Random(0)
    words = [word for line in TEXT.read_text(encoding="utf-8").splitlines() for word in line.split("\t")[1].split()]
    requests = []
    for _ in range(num_contexts):
        start, length = rng.randrange(len(words) - 200), rng.randint(*context_words)
        context = " ".join(words[start : start + length])
        for _ in range(num_options):
            start, length = rng.randrange(len(words) - 200), rng.randint(*option_words)
            requests.append(ScoreRequest(context, " " + " ".join(words[start : start + length])))
    return requests


def privlm_scorer(backend: LocalBackend) -> Callable[[Sequence[ScoreRequest]], list[float]]:
    def score(requests: Sequence[ScoreRequest]) -> list[float]:
        replies = dict(backend.ask(requests))
        return [reply.sum_nll for i in range(len(requests)) if isinstance(reply := replies[i], Score)]

    return score


def harness_scorer(backend: LocalBackend, batch_size: int) -> Callable[[Sequence[ScoreRequest]], list[float]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=backend._lm, tokenizer=backend._tokenizer, batch_size=batch_size, device="cpu")

    def score(requests: Sequence[ScoreRequest]) -> list[float]:
        instances = [
            Instance("loglikelihood", {}, (request.context, request.continuation), i)
            for i, request in enumerate(requests)
        ]
        return [-logp for logp, _ in lm.loglikelihood(instances, disable_tqdm=True)]

    return score


def measure(backend: LocalBackend, workload: str, arguments: argparse.Namespace) -> list[str]:
    """Markdown rows. Raises SystemExit where the scorers disagree."""
    requests = requests_of(workload, arguments.contexts)
    scorers: dict[str, Callable[[Sequence[ScoreRequest]], list[float]]] = {"privlm": privlm_scorer(backend)}
    if importlib.util.find_spec("lm_eval"):
        scorers |= {f"lm-eval hf, batch {size}": harness_scorer(backend, size) for size in arguments.batch_sizes}
    expected = scorers["privlm"](requests)
    for name, scorer in scorers.items():
        difference = max(abs(a - b) for a, b in zip(scorer(requests), expected, strict=True))
        print(f"{workload}: {name} differs by {difference:.1e} nats at most", file=sys.stderr)
        if difference > TOLERANCE:
            raise SystemExit("the scorers disagree: nothing to compare")
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(arguments.rounds):
        for name, scorer in scorers.items():
            start = time.process_time()
            scorer(requests)
            seconds[name].append(time.process_time() - start)
    rows = []
    for name, own in seconds.items():
        rate = len(requests) / np.median(own)
        ratios = report.spread(list(np.divide(own, seconds["privlm"])))
        rows.append(f"| {workload} | {name} | {rate:.1f} | {ratios} |")
        print(rows[-1], file=sys.stderr)
    return rows


def generation_rate(backend: LocalBackend, num_prompts: int, max_tokens: int) -> str:
    prompts = [request.context for request in requests_of("long", num_prompts)]
    start = time.process_time()
    replies = dict(backend.ask([GenerateRequest(prompt, Sampling(max_tokens)) for prompt in prompts]))
    seconds = time.process_time() - start
    tokens = sum(reply.completion_tokens for reply in replies.values() if not isinstance(reply, Score))
    return f"Greedy decoding of {num_prompts} prompts by {max_tokens} tokens: {tokens / seconds:.0f} tokens/CPU s."


def section(arguments: argparse.Namespace, backend: LocalBackend, rows: Sequence[str], generation: str) -> str:
    parameters = sum(parameter.numel() for parameter in backend._lm.parameters())
    return "\n".join(
        [
            f"## Scoring, llm={arguments.llm} ({parameters / 1e6:.0f} M parameters)",
            "",
            f"Log-likelihoods of {arguments.contexts} contexts: "
            + "; ".join(f"{name}, {text[0]}" for name, text in WORKLOADS.items())
            + ". Differences of the scorers are below 1e-3 nats.",
            "",
            "| workload | scorer | requests/CPU s | x privlm's time (quartiles) |",
            "|--|--|--|--|",
            *rows,
            "",
            generation,
            "",
            report.conditions(arguments.rounds, "torch", "transformers", "lm-eval"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="smollm2", help="an option of the group llm")
    parser.add_argument("--workloads", choices=list(WORKLOADS), nargs="+", default=list(WORKLOADS))
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of the harness")
    parser.add_argument("--batch-tokens", type=int, help="of PrivLM; default: llm.batch_tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the table into {report.REPORT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changes: dict[str, Any] = {"batch_tokens": arguments.batch_tokens} if arguments.batch_tokens else {}
    backend = LocalBackend.from_files(defaults(LocalLLMConfig, "llm", arguments.llm, **changes))
    rows = [row for workload in arguments.workloads for row in measure(backend, workload, arguments)]
    text = section(arguments, backend, rows, generation_rate(backend, arguments.contexts, 32))
    print(text)
    if arguments.write:
        report.write(f"llm_scoring {arguments.llm}", text)


if __name__ == "__main__":
    main()
