"""`privlm accountant eps|sigma`: the cost of a noise, and the noise of a budget, without training anything."""

import argparse
import functools
import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from privlm.cli.arguments import ArgumentParser
from privlm.errors import UsageError
from privlm.report.render import console, print_table
from privlm.report.table import Table

_EXAMPLES = """\
examples:
  what do 3 epochs on SST-2 at noise multiplier 0.6 cost?
    privlm accountant eps --batch-size 1000 --dataset-size 67349 --epochs 3 --noise-multiplier 0.6 --delta 1/2N

  how much noise keeps 1684 steps at sampling rate 0.03 within epsilon 3?
    privlm accountant sigma --sample-rate 0.03 --steps 1684 --delta 1e-5 --epsilon 3

  the same by every accountant, with what each noise really costs:
    privlm accountant sigma --sample-rate 0.03 --steps 1684 --delta 1e-5 --epsilon 3 --all

accountants:
  pld        certified, tight (default)
  rdp        certified, looser
  gdp        ESTIMATE: central limit theorem; far too low in short runs
  edgeworth  ESTIMATE: cumulant expansion (--order); close, but too low in short runs

exit status: 0, or 2 for a wrong argument.
"""


def main(argv: list[str]) -> int:
    """Runs `privlm accountant ARGV`; prints to stdout and returns 0. Raises UsageError naming the option at fault."""
    options = _parser().parse_args(argv)
    options.command(options)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="privlm accountant", description=__doc__, epilog=_EXAMPLES)
    commands = parser.add_subparsers(title="commands", required=True, metavar="{eps,sigma}")

    eps = commands.add_parser("eps", help="epsilon of a noise multiplier", epilog=_EXAMPLES)
    eps.set_defaults(command=_eps)
    eps.add_argument("--noise-multiplier", required=True, type=_NOISE, metavar="SIGMA", help="noise in clipping norms")
    eps.add_argument(
        "--direction",
        default="both",
        choices=("both", "add", "remove"),
        help="the loss of adding a record, of removing one, or the larger (default: both)",
    )

    sigma = commands.add_parser("sigma", help="least noise multiplier of a target epsilon", epilog=_EXAMPLES)
    sigma.set_defaults(command=_sigma)
    sigma.add_argument("--epsilon", required=True, type=_EPSILON, metavar="EPS", help="the target")

    for command in (eps, sigma):
        _add_run_options(command)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    rate = parser.add_mutually_exclusive_group(required=True)
    rate.add_argument("--sample-rate", type=_RATE, metavar="Q", help="chance of a record to be in a batch")
    rate.add_argument("--batch-size", type=_COUNT, metavar="B", help="expected batch size; needs --dataset-size")
    parser.add_argument("--dataset-size", type=_COUNT, metavar="N", help="records; also checks delta against 1/N")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=_STEPS, metavar="T", help="number of steps")
    length.add_argument("--epochs", type=_EPOCHS, metavar="E", help="T = ceil(E N / B); needs --batch-size")
    parser.add_argument("--delta", required=True, metavar="DELTA", help="a number in (0, 1), or 1/2N")
    parser.add_argument("--allow-large-delta", action="store_true", help="accept a delta of 1/N and more")
    parser.add_argument(
        "--adjacency",
        default="add_remove",
        choices=("add_remove", "zero_out", "replace_one"),
        help="what neighbouring data sets differ in (default: add_remove)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--accountant", default="pld", choices=("pld", "rdp", "gdp", "edgeworth"))
    which.add_argument("--all", action="store_true", help="every accountant, side by side")
    parser.add_argument("--order", type=int, choices=(0, 1, 2, 3), help="of --accountant edgeworth (default: 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with --all a list")


def _checked(cast: Callable[[str], Any], holds: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """An argparse type: argparse puts the name of the option in front of the message."""

    def parse(text: str) -> Any:
        try:
            value = cast(text)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return parse


_RATE = _checked(float, lambda q: 0 <= q <= 1, "a number in [0, 1]")
_NOISE = _checked(float, lambda sigma: sigma >= 0, "a number >= 0")
_EPSILON = _checked(float, lambda epsilon: 0 < epsilon < math.inf, "a finite number > 0")
_COUNT = _checked(int, lambda count: count >= 1, "an integer >= 1")
_STEPS = _checked(int, lambda steps: steps >= 0, "an integer >= 0")
_EPOCHS = _checked(Fraction, lambda epochs: epochs >= 0, "a number >= 0")  # exact, so that the ceiling is


def _run(options: argparse.Namespace) -> tuple[float, int, float, list[str]]:
    """(sampling rate, steps, delta, notes) that the options describe."""
    from privlm.privacy import accounting

    size, batch = options.dataset_size, options.batch_size
    if batch is not None and size is None:
        raise UsageError("--batch-size needs --dataset-size; or give --sample-rate")
    if options.epochs is not None and batch is None:
        raise UsageError("--epochs needs --batch-size and --dataset-size; or give --steps")
    if batch is not None and batch > size:
        raise UsageError(f"--batch-size {batch} exceeds --dataset-size {size}")
    if options.order is not None and (options.all or options.accountant != "edgeworth"):
        raise UsageError("--order is an option of --accountant edgeworth")

    rate = options.sample_rate if batch is None else batch / size
    steps = options.steps if options.epochs is None else accounting.num_steps(options.epochs, size, batch)
    try:
        delta = accounting.resolve_delta(options.delta, size)
        if size is None:
            return rate, steps, delta, ["delta not checked against 1/N: no --dataset-size"]
        return rate, steps, delta, accounting.check_delta(delta, size, options.allow_large_delta)
    except UsageError as error:
        raise UsageError(f"--delta: {error}") from None


def _choices(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Keyword arguments of the accountants to ask."""
    if options.all:
        return [{"accountant": name} for name in ("pld", "rdp", "gdp")] + [
            {"accountant": "edgeworth", "order": order} for order in (1, 2, 3)
        ]
    if options.order is None:
        return [{"accountant": options.accountant}]
    return [{"accountant": options.accountant, "order": options.order}]


def _eps(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    rate, steps, delta, notes = _run(options)
    segment = accounting.Segment(rate, options.noise_multiplier, steps)

    @functools.cache
    def answer_of(**choice: Any) -> accounting.Guarantee:
        return accounting.epsilon([segment], delta, direction=options.direction, adjacency=options.adjacency, **choice)

    answers = []
    for choice in _choices(options):
        answer = answer_of(**choice).to_dict()
        if choice["accountant"] in accounting.ESTIMATES:
            answer["certified_pld"] = answer_of(accountant="pld").to_dict()["epsilon"]
        answers.append(answer)
    _print(options, answers, notes, columns=("epsilon",))


def _sigma(options: argparse.Namespace) -> None:
    from privlm.privacy import accounting

    rate, steps, delta, notes = _run(options)
    answers = []
    for choice in _choices(options):
        found = accounting.noise_multiplier(
            target_epsilon=options.epsilon,
            delta=delta,
            sampling_rate=rate,
            steps=steps,
            adjacency=options.adjacency,
            **choice,
        )
        answer = found.to_dict()
        if choice["accountant"] in accounting.ESTIMATES:
            segments = [accounting.Segment(rate, found.noise_multiplier, steps)]
            certified = accounting.epsilon(segments, delta, adjacency=options.adjacency)
            answer["certified_pld"] = certified.to_dict()["epsilon"]
        answers.append(answer)
    _print(options, answers, notes, columns=("noise_multiplier", "epsilon"))


def _print(
    options: argparse.Namespace, answers: list[dict[str, Any]], notes: list[str], columns: tuple[str, ...]
) -> None:
    for answer in answers:
        answer["notes"] += notes
    if options.json:
        print(json.dumps(answers if options.all else answers[0], indent=2, allow_nan=False))
    elif options.all:
        _print_table(answers, columns)
    else:
        _print_one(answers[0], columns)


def _print_one(answer: dict[str, Any], columns: tuple[str, ...]) -> None:
    for column in columns:
        print(f"{column.replace('_', ' ')} {_rounded_up(answer[column])}")
    print(f"{_status(answer)} ({_name(answer)}, {answer['version']})")
    if "certified_pld" in answer:
        print(f"certified by pld: epsilon {_rounded_up(answer['certified_pld'])}")
    print(_setting(answer))
    for note in answer["notes"]:
        print(f"note: {note}")


def _print_table(answers: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Beside what each accountant says: the epsilon that is certified for the same noise."""
    rows = []
    for answer in answers:
        certified = answer.get("certified_pld", answer["epsilon"])
        numbers = [_rounded_up(value) for value in (*(answer[column] for column in columns), certified)]
        rows.append([_name(answer), *numbers, _status(answer)])
    headings = ["accountant", *(column.replace("_", " ") for column in columns), "certified epsilon", "status"]
    notes = [_setting(answers[0]), *dict.fromkeys(note for answer in answers for note in answer["notes"])]
    print_table(Table("accountants", "Accountants side by side", headings, rows, notes), console())


def _setting(answer: dict[str, Any]) -> str:
    [segment] = answer["segments"]
    return (
        f"sampling rate {segment['sampling_rate']:.6g}, {segment['steps']} steps, delta {answer['delta']:.6g}, "
        f"adjacency {answer['adjacency']}, direction {answer['direction']}"
    )


def _name(answer: dict[str, Any]) -> str:
    return answer["accountant"] if answer["order"] is None else f"edgeworth order {answer['order']}"


def _status(answer: dict[str, Any]) -> str:
    return "certified" if answer["guarantee"] else "not a guarantee"


def _rounded_up(value: float | str) -> str:
    """Four decimals, upwards: what is printed never promises more privacy than was computed."""
    return value if isinstance(value, str) else f"{math.ceil(value * 1e4) / 1e4:.4f}"
