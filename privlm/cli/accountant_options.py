"""Options that the commands of `privlm accountant` share, and what they mean together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from privlm.errors import UsageError


def checked(cast: Callable[[str], Any], holds: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
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


_RATE = checked(float, lambda q: 0 <= q <= 1, "a number in [0, 1]")
_NOISE = checked(float, lambda sigma: sigma >= 0, "a number >= 0")
_EPSILON = checked(float, lambda epsilon: 0 < epsilon < math.inf, "a finite number > 0")
_COUNT = checked(int, lambda count: count >= 1, "an integer >= 1")
_STEPS = checked(int, lambda steps: steps >= 0, "an integer >= 0")
_EPOCHS = checked(Fraction, lambda epochs: epochs >= 0, "a number >= 0")  # exact, so that the ceiling is

ACCOUNTANTS = ("pld", "rdp", "gdp", "edgeworth", "prv", "contour")
ADJACENCIES = ("add_remove", "zero_out", "replace_one")


def add_noise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--noise-multiplier", required=True, type=_NOISE, metavar="SIGMA", help="noise in clipping norms"
    )


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epsilon", required=True, type=_EPSILON, metavar="EPS", help="the target")


def add_direction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--direction",
        default="both",
        choices=("both", "add", "remove"),
        help="the loss of adding a record, of removing one, or the larger (default: both)",
    )


def add_rate(parser: argparse.ArgumentParser) -> None:
    rate = parser.add_mutually_exclusive_group(required=True)
    rate.add_argument("--sample-rate", type=_RATE, metavar="Q", help="chance of a record to be in a batch")
    rate.add_argument("--batch-size", type=_COUNT, metavar="B", help="expected batch size; needs --dataset-size")


def add_length(parser: argparse.ArgumentParser, epochs_help: str = "T = ceil(E N / B); needs --batch-size") -> None:
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=_STEPS, metavar="T", help="number of steps")
    length.add_argument("--epochs", type=_EPOCHS, metavar="E", help=epochs_help)


def add_data(parser: argparse.ArgumentParser, needs_size: bool = False) -> None:
    parser.add_argument(
        "--dataset-size",
        required=needs_size,
        type=_COUNT,
        metavar="N",
        help="records; also checks delta against 1/N",
    )
    parser.add_argument("--delta", required=True, metavar="DELTA", help="a number in (0, 1), or 1/2N")
    parser.add_argument("--allow-large-delta", action="store_true", help="accept a delta of 1/N and more")
    parser.add_argument(
        "--adjacency",
        default="add_remove",
        choices=ADJACENCIES,
        help="what neighbouring data sets differ in (default: add_remove)",
    )


def add_order(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--order", type=int, choices=(0, 1, 2, 3), help="of --accountant edgeworth (default: 2)")


def add_accountant(parser: argparse.ArgumentParser, *, with_all: bool) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--accountant", default="pld", choices=ACCOUNTANTS)
    if with_all:
        which.add_argument("--all", action="store_true", help="every accountant, side by side")
    add_order(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object" + ", with --all a list" * with_all)
    parser.set_defaults(all=False)


def choices_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Keyword arguments of the accountants to ask."""
    if options.order is not None and (options.all or options.accountant != "edgeworth"):
        raise UsageError("--order is an option of --accountant edgeworth")
    if options.all:
        orders = [{"accountant": "edgeworth", "order": order} for order in (1, 2, 3)]
        return [*({"accountant": name} for name in ("pld", "rdp", "prv", "gdp")), *orders, {"accountant": "contour"}]
    if options.order is None:
        return [{"accountant": options.accountant}]
    return [{"accountant": options.accountant, "order": options.order}]


def rate_of(options: argparse.Namespace) -> float:
    """The sampling rate. Raises UsageError for a batch without a data set, or larger than it."""
    size, batch = options.dataset_size, options.batch_size
    if batch is None:
        return options.sample_rate
    if size is None:
        raise UsageError("--batch-size needs --dataset-size; or give --sample-rate")
    if batch > size:
        raise UsageError(f"--batch-size {batch} exceeds --dataset-size {size}")
    return batch / size


def steps_of(options: argparse.Namespace) -> int:
    """The number of steps. Raises UsageError for epochs of a batch size that is not known."""
    from privlm.privacy import accounting

    if options.epochs is None:
        return options.steps
    if options.batch_size is None:
        raise UsageError("--epochs needs --batch-size and --dataset-size; or give --steps")
    return accounting.num_steps(options.epochs, options.dataset_size, options.batch_size)


def delta_of(options: argparse.Namespace) -> tuple[float, list[str]]:
    """(delta, notes about its size). Raises UsageError for a delta that protects nobody."""
    from privlm.privacy import accounting

    size = options.dataset_size
    try:
        delta = accounting.resolve_delta(options.delta, size)
        if size is None:
            return delta, ["delta not checked against 1/N: no --dataset-size"]
        return delta, accounting.check_delta(delta, size, options.allow_large_delta)
    except UsageError as error:
        raise UsageError(f"--delta: {error}") from None
