"""`privlm accountant`: what a noise costs, what a budget allows and what a run has spent, without training anything."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from privlm.cli import accountant_curve, accountant_ledger
from privlm.cli import accountant_options as option
from privlm.cli.accountant_answers import print_answers
from privlm.cli.arguments import ArgumentParser
from privlm.errors import UsageError

_EXAMPLES = """\
examples:
  what do 3 epochs on SST-2 at noise multiplier 0.6 cost?
    privlm accountant eps --batch-size 1000 --dataset-size 67349 --epochs 3 --noise-multiplier 0.6 --delta 1/2N

  how much noise keeps 1684 steps at sampling rate 0.03 within epsilon 3?
    privlm accountant sigma --sample-rate 0.03 --steps 1684 --delta 1e-5 --epsilon 3

  the same by every accountant, with what each noise really costs:
    privlm accountant sigma --sample-rate 0.03 --steps 1684 --delta 1e-5 --epsilon 3 --all

  how long may a run be, and how large its batches?
    privlm accountant steps --sample-rate 0.03 --noise-multiplier 1 --delta 1e-5 --epsilon 3
    privlm accountant batch --dataset-size 67349 --epochs 3 --noise-multiplier 0.8 --delta 1/2N --epsilon 3

  where does the Edgeworth estimate promise too much? a picture:
    privlm accountant curve --batch-size 1000 --dataset-size 67349 --epochs 3 --noise-multiplier 0.6 --delta 1/2N \\
        --output curve.png

  what have two runs on the same data spent together?
    privlm accountant ledger RUN RUN

accountants:
  pld        certified at a delta of 1e-10 and more, tight (default)
  rdp        certified at any delta, looser
  gdp        ESTIMATE: central limit theorem; far too low in short runs
  edgeworth  ESTIMATE: cumulant expansion (--order); close, but too low in short runs
  prv        certified at a delta of 1e-7 and more, two-sided: the upper end is the answer, the lower end is in a note
  contour    CROSS-CHECK: exact up to a quadrature error that it states; no answer for a few steps

exit status: 0, or 2 for a wrong argument.
"""


def main(argv: list[str]) -> int:
    """Runs `privlm accountant ARGV`; prints to stdout and returns 0. Raises UsageError naming the option at fault."""
    options = _parser().parse_args(argv)
    options.command(options)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="privlm accountant", description=__doc__, epilog=_EXAMPLES)
    names = "{eps,sigma,steps,batch,curve,ledger}"
    commands = parser.add_subparsers(title="commands", required=True, metavar=names)

    def add(name: str, what: str, command: Callable[..., None], *options: Callable[..., None], with_all: bool) -> None:
        parser = commands.add_parser(name, help=what, epilog=_EXAMPLES)
        parser.set_defaults(command=command)
        for add_option in options:
            add_option(parser)
        option.add_accountant(parser, with_all=with_all)

    run = (option.add_rate, option.add_length, option.add_data)
    add("eps", "epsilon of a noise multiplier", _eps, option.add_noise, option.add_direction, *run, with_all=True)
    add("sigma", "least noise multiplier of a target epsilon", _sigma, option.add_target, *run, with_all=True)
    budget = (option.add_target, option.add_noise)
    add("steps", "most steps of a target epsilon", _steps, *budget, option.add_rate, option.add_data, with_all=False)
    sizes = (
        partial(option.add_length, epochs_help="T = ceil(E N / B) for every batch size B"),
        partial(option.add_data, needs_size=True),
    )
    add("batch", "largest batch size of a target epsilon", _batch, *budget, *sizes, with_all=False)
    accountant_curve.add_to(commands)
    accountant_ledger.add_to(commands)
    return parser


def _eps(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    choices = option.choices_of(options)
    segment = accounting.Segment(option.rate_of(options), options.noise_multiplier, option.steps_of(options))
    delta, notes = option.delta_of(options)
    setting = {"direction": options.direction, "adjacency": options.adjacency}
    answers = _ask_each(choices, lambda choice: _answer([segment], delta, choice, setting), notes)
    print_answers(options, answers, notes, ["epsilon"])


def _ask_each(
    choices: list[dict[str, Any]], ask: Callable[[dict[str, Any]], dict[str, Any]], notes: list[str]
) -> list[dict[str, Any]]:
    """Answers in order. A cross-check that refuses is a note beside the others; any other refusal is raised."""
    from privlm.privacy import accounting

    answers = []
    for choice in choices:
        try:
            answers.append(ask(choice))
        except UsageError as refusal:
            if choice["accountant"] not in accounting.CROSS_CHECKS or len(choices) == 1:
                raise
            notes.append(str(refusal))
    return answers


def _answer(segments: list[Any], delta: float, choice: dict[str, Any], setting: dict[str, Any]) -> dict[str, Any]:
    """What an accountant says; beside an estimate stands what is certain."""
    from privlm.privacy import accounting

    if choice["accountant"] == "edgeworth":
        order = choice.get("order", 2)
        return accounting.edgeworth_answer(segments, delta, order=order, **setting).to_dict()
    answer = accounting.epsilon(segments, delta, **choice, **setting).to_dict()
    if choice["accountant"] in accounting.ESTIMATES:
        certified = accounting.epsilon(segments, delta, **setting)
        answer["certified_pld"] = certified.to_dict()["epsilon"] if certified.guarantee else None
    return answer


def _sigma(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    run = {"sampling_rate": option.rate_of(options), "steps": option.steps_of(options)}
    _solve(options, accounting.noise_multiplier, run, "noise_multiplier")


def _steps(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    run = {"sampling_rate": option.rate_of(options), "noise_multiplier": options.noise_multiplier}
    _solve(options, accounting.most_steps, run, "steps")


def _batch(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    run = {name: getattr(options, name) for name in ("dataset_size", "noise_multiplier", "steps", "epochs")}
    _solve(options, accounting.largest_batch_size, run, "batch_size")


def _solve(options: argparse.Namespace, find: Callable[..., Any], run: dict[str, Any], wanted: str) -> None:
    """Prints the `wanted` quantity that keeps the target, as `find` finds it for a run of which the rest is given."""
    delta, notes = option.delta_of(options)
    budget = {"target_epsilon": options.epsilon, "delta": delta, "adjacency": options.adjacency}

    def ask(choice: dict[str, Any]) -> dict[str, Any]:
        found = find(**budget, **run, **choice)
        said = _answer(list(found.achieved.segments), delta, choice, {"adjacency": options.adjacency})
        return found.to_dict() | said

    print_answers(options, _ask_each(option.choices_of(options), ask, notes), notes, [wanted, "epsilon"])
