"""Throughput of answering the questions of LLM-Adapters, beside one by one without cache, and lm-evaluation-harness.

    python benchmarks/generation.py                       # SmolLM2, 2 questions of each embedded set
    python benchmarks/generation.py --model tiny_lm       # seconds
    python benchmarks/generation.py --write

All decode greedily with the one model object, on one thread, and take turns. `one by one, no cache` is how the released
evaluation of the paper decodes: a question at a time, every token of it read again for each new one. Before anything is
timed the answers are compared, and an answer that differs from PrivLM's ends the benchmark. Times are CPU seconds,
ratios are to PrivLM in the same round.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import report
import torch
from privlm.runners.llm_adapters.math_data import load
from privlm.runners.llm_adapters.prompts import Prompts

from privlm.adapters.load import load_causal_lm
from privlm.cli.compose import Words, compose
from privlm.llm.local.backend import LocalBackend
from privlm.llm.types import Answer, GenerateRequest, Sampling
from privlm.models.loaded import Loaded

Answerer = Callable[[Sequence[str]], list[str]]
"""Prompts -> continuations."""


def privlm_answerer(loaded: Loaded, max_tokens: int) -> Answerer:
    def answer(prompts: Sequence[str]) -> list[str]:
        requests = [GenerateRequest(prompt, Sampling(max_tokens)) for prompt in prompts]
        replies = dict(LocalBackend.of(loaded).ask(requests))
        return [reply.text for i in range(len(prompts)) if isinstance(reply := replies[i], Answer)]

    return answer


def one_by_one(loaded: Loaded, max_tokens: int, *, use_cache: bool) -> Answerer:
    model: Any = loaded.model
    tokenizer = loaded.tokenizer

    @torch.inference_mode()
    def answer(prompts: Sequence[str]) -> list[str]:
        model.eval()
        texts = []
        for prompt in prompts:
            encoded = tokenizer(prompt, return_tensors="pt")
            tokens = model.generate(
                **encoded, max_new_tokens=max_tokens, do_sample=False, use_cache=use_cache,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            texts.append(tokenizer.decode(tokens[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True))
        return texts

    return answer


def harness(loaded: Loaded, max_tokens: int, batch_size: int) -> Answerer:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size, device="cpu")
    settings = {"until": [], "max_gen_toks": max_tokens, "do_sample": False}

    def answer(prompts: Sequence[str]) -> list[str]:
        instances = [Instance("generate_until", {}, (prompt, settings), i) for i, prompt in enumerate(prompts)]
        return list(lm.generate_until(instances, disable_tqdm=True))

    return answer


def compare(answers: dict[str, list[str]]) -> None:
    """Raises SystemExit for an answer that is not PrivLM's."""
    expected = answers["privlm"]
    for name, texts in answers.items():
        others = [i for i, (one, other) in enumerate(zip(texts, expected, strict=True)) if one.strip() != other.strip()]
        print(f"{name}: {len(expected) - len(others)} of {len(expected)} answers are PrivLM's", file=sys.stderr)
        if others:
            raise SystemExit(f"{name}, question {others[0]}: {texts[others[0]]!r} for {expected[others[0]]!r}")


def measure(answerers: dict[str, Answerer], prompts: Sequence[str], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in answerers}
    for _ in range(num_rounds):
        for name, answerer in answerers.items():
            start = time.process_time()
            answerer(prompts)
            seconds[name].append(time.process_time() - start)
    return seconds


def section(arguments: argparse.Namespace, num_prompts: int, seconds: dict[str, list[float]]) -> str:
    rows = [
        f"| {name} | {num_prompts / np.median(own):.2f} | {report.spread(list(np.divide(own, seconds['privlm'])))} |"
        for name, own in seconds.items()
    ]
    return "\n".join(
        [
            f"## Answers, model={arguments.model}",
            "",
            f"Greedy answers of at most {arguments.max_tokens} tokens to {num_prompts} questions of six sets of math, "
            "the same from all.",
            "",
            "| | questions/CPU s | x privlm's time (quartiles) |",
            "|--|--|--|",
            *rows,
            "",
            report.conditions(arguments.rounds, "torch", "transformers", "lm-eval"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="an option of the group model")
    parser.add_argument("--questions", type=int, default=2, help="of each set")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of the harness")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the table into {report.REPORT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = ("task=llm_adapters", f"model={arguments.model}", "adapter=none")
    config: Any = compose(Words((*words, f"data.num_test_questions={arguments.questions}"))).config
    loaded = load_causal_lm(config.model, config.adapter, config.seed)
    builder = Prompts("alpaca", "none", loaded.tokenizer)
    prompts = [builder.evaluation(question) for set_ in load(config.data).tests.values() for question in set_]
    length = arguments.max_tokens
    answerers = {
        "privlm": privlm_answerer(loaded, length),
        "one by one, no cache": one_by_one(loaded, length, use_cache=False),
        "one by one, cache": one_by_one(loaded, length, use_cache=True),
    }
    if importlib.util.find_spec("lm_eval"):
        answerers |= {f"lm-eval hf, batch {size}": harness(loaded, length, size) for size in arguments.batch_sizes}
    compare({name: answerer(prompts) for name, answerer in answerers.items()})
    text = section(arguments, len(prompts), measure(answerers, prompts, arguments.rounds))
    print(text)
    if arguments.write:
        report.write(f"generation {arguments.model}", text)


if __name__ == "__main__":
    main()
