"""`privlm accountant`: what a noise costs, what a budget allows and what a run has spent, without training anything."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
  pld        certified, tight (default)
  rdp        certified, looser
  gdp        ESTIMATE: central limit theorem; far too low in short runs
  edgeworth  ESTIMATE: cumulant expansion (--order); close, but too low in short runs
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

    eps = commands.add_parser("eps", help="epsilon of a noise multiplier", epilog=_EXAMPLES)
    eps.set_defaults(command=_eps)
    option.add_noise(eps)
    eps.add_argument(
        "--direction",
        default="both",
        choices=("both", "add", "remove"),
        help="the loss of adding a record, of removing one, or the larger (default: both)",
    )
    option.add_rate(eps)
    option.add_length(eps)
    option.add_data(eps)
    option.add_accountant(eps, option.ACCOUNTANTS, with_all=True)

    sigma = commands.add_parser("sigma", help="least noise multiplier of a target epsilon", epilog=_EXAMPLES)
    sigma.set_defaults(command=_sigma)
    option.add_target(sigma)
    option.add_rate(sigma)
    option.add_length(sigma)
    option.add_data(sigma)
    option.add_accountant(sigma, option.ACCOUNTANTS, with_all=True)

    steps = commands.add_parser("steps", help="most steps of a target epsilon", epilog=_EXAMPLES)
    steps.set_defaults(command=_steps)
    option.add_target(steps)
    option.add_noise(steps)
    option.add_rate(steps)
    option.add_data(steps)
    option.add_accountant(steps, option.ACCOUNTANTS, with_all=False)

    batch = commands.add_parser("batch", help="largest batch size of a target epsilon", epilog=_EXAMPLES)
    batch.set_defaults(command=_batch)
    option.add_target(batch)
    option.add_noise(batch)
    option.add_length(batch, epochs_help="T = ceil(E N / B) for every batch size B")
    option.add_data(batch, needs_size=True)
    option.add_accountant(batch, option.ACCOUNTANTS, with_all=False)

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
        answer["certified_pld"] = certified.to_dict()["epsilon"]
    return answer


def _sigma(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    choices = option.choices_of(options)
    rate, steps = option.rate_of(options), option.steps_of(options)
    delta, notes = option.delta_of(options)

    def ask(choice: dict[str, Any]) -> dict[str, Any]:
        found = accounting.noise_multiplier(
            target_epsilon=options.epsilon,
            delta=delta,
            sampling_rate=rate,
            steps=steps,
            adjacency=options.adjacency,
            **choice,
        )
        said = _answer(list(found.achieved.segments), delta, choice, {"adjacency": options.adjacency})
        return found.to_dict() | said

    print_answers(options, _ask_each(choices, ask, notes), notes, ["noise_multiplier", "epsilon"])


def _steps(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    [choice] = option.choices_of(options)
    rate = option.rate_of(options)
    delta, notes = option.delta_of(options)
    found = accounting.most_steps(
        target_epsilon=options.epsilon,
        delta=delta,
        sampling_rate=rate,
        noise_multiplier=options.noise_multiplier,
        adjacency=options.adjacency,
        **choice,
    )
    said = _answer(list(found.achieved.segments), delta, choice, {"adjacency": options.adjacency})
    print_answers(options, [found.to_dict() | said], notes, ["steps", "epsilon"])


def _batch(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    [choice] = option.choices_of(options)
    delta, notes = option.delta_of(options)
    found = accounting.largest_batch_size(
        target_epsilon=options.epsilon,
        delta=delta,
        dataset_size=options.dataset_size,
        noise_multiplier=options.noise_multiplier,
        steps=options.steps,
        epochs=options.epochs,
        adjacency=options.adjacency,
        **choice,
    )
    said = _answer(list(found.achieved.segments), delta, choice, {"adjacency": options.adjacency})
    print_answers(options, [found.to_dict() | said], notes, ["batch_size", "epsilon"])
