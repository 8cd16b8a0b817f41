"""What accounting costs: epsilon of a run, and the noise of a budget with its certificate, beside other libraries.

    python benchmarks/accounting.py
    python benchmarks/accounting.py --rounds 9 --write

Every library answers the same questions in turn, in CPU milliseconds on one thread; nothing is cached between rounds.
Beside the time stands the answer: a quick number that is no bound, or a wrong one, is no gain.
"""

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import dp_accounting
import report
from dp_accounting import pld as dp_pld
from dp_accounting import rdp as dp_rdp

from privlm.privacy import accounting
from privlm.privacy.accounting import pld

Answerer = Callable[[float, int, float], float]
"""(sampling rate, steps, noise multiplier) -> the number asked for."""

DELTA, TARGET, TOLERANCE = 1e-5, 3.0, 1e-3
RUNS = {  # the RGP setting of EW-Tune on SST-2 and MNLI, and a short run: (sampling rate, steps, noise multiplier)
    "SST-2, 50 epochs": (2000 / 67349, 1684, 1.8662),
    "MNLI, 50 epochs": (2000 / 392702, 9818, 0.9702),
    "QNLI, 3 epochs": (1000 / 104743, 315, 0.7180),
}


@dataclass
class Timings:
    """CPU milliseconds of each round and the answer of the last."""

    milliseconds: list[float] = field(default_factory=list)
    answer: float = math.nan


def event(rate: float, steps: int, sigma: float) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def ours(accountant: str) -> Answerer:
    def ask(rate: float, steps: int, sigma: float) -> float:
        return accounting.epsilon([accounting.Segment(rate, sigma, steps)], DELTA, accountant=accountant).epsilon

    return ask


def theirs(accountant: type) -> Answerer:
    return lambda rate, steps, sigma: accountant().compose(event(rate, steps, sigma)).get_epsilon(DELTA)


def opacus(name: str) -> Answerer:
    from opacus.accountants import create_accountant

    def ask(rate: float, steps: int, sigma: float) -> float:
        accountant = create_accountant(name)
        accountant.history = [(sigma, rate, steps)]
        return float(accountant.get_epsilon(DELTA))

    return ask


def our_noise(rate: float, steps: int, sigma: float) -> float:
    return accounting.noise_multiplier(
        target_epsilon=TARGET, delta=DELTA, sampling_rate=rate, steps=steps
    ).noise_multiplier


def their_noise(rate: float, steps: int, sigma: float) -> float:
    return float(
        dp_accounting.calibrate_dp_mechanism(
            dp_pld.PLDAccountant, lambda sigma: event(rate, steps, sigma), TARGET, DELTA, tol=1e-4
        )
    )


def opacus_noise(name: str) -> Answerer:
    from opacus.accountants.utils import get_noise_multiplier

    return lambda rate, steps, sigma: get_noise_multiplier(
        target_epsilon=TARGET,
        target_delta=DELTA,
        sample_rate=rate,
        steps=steps,
        accountant=name,
        epsilon_tolerance=1e-3,
    )


def epsilon_answerers() -> dict[str, Answerer]:
    """Who answers -> how; the brackets say what an answer is worth."""
    answerers = {
        "privlm edgeworth, order 2 (estimate)": ours("edgeworth"),
        "privlm gdp (estimate)": ours("gdp"),
        "privlm pld, certificate at 1e-4 (bound)": ours("pld"),
        "privlm prv, error 0.01 (bound)": ours("prv"),
        "privlm rdp (bound)": ours("rdp"),
        "privlm contour (cross-check)": ours("contour"),
        "dp-accounting PLD at 1e-4 (bound)": theirs(dp_pld.PLDAccountant),
        "dp-accounting RDP (bound)": theirs(dp_rdp.RdpAccountant),
    }
    if importlib.util.find_spec("opacus"):
        answerers |= {
            "opacus prv, error 0.01 (bound)": opacus("prv"),
            "opacus rdp (bound)": opacus("rdp"),
            "opacus gdp (estimate)": opacus("gdp"),
        }
    return answerers


def noise_answerers() -> dict[str, Answerer]:
    answerers = {"privlm pld, with certificate": our_noise, "dp-accounting PLD at 1e-4": their_noise}
    if importlib.util.find_spec("opacus"):
        answerers |= {"opacus prv": opacus_noise("prv"), "opacus rdp": opacus_noise("rdp")}
    return answerers


QUESTIONS = {
    "epsilon": (f"Epsilon at δ {DELTA:g}", epsilon_answerers),
    "noise": (f"Noise multiplier for epsilon {TARGET:g} at δ {DELTA:g}", noise_answerers),
}


def measure(answerers: dict[str, Answerer], num_rounds: int) -> list[str]:
    """A Markdown table: a row per answerer, two columns per run."""
    found = {(who, run): Timings() for who in answerers for run in RUNS}
    for number in range(num_rounds + 1):  # the first one warms up
        for (who, run), timings in found.items():
            pld._compose.cache_clear()
            start = time.process_time()
            timings.answer = answerers[who](*RUNS[run])
            if number:
                timings.milliseconds.append(1000 * (time.process_time() - start))
    columns = [cell for run in RUNS for cell in (f"{run}: CPU ms (quartiles)", "answer")]
    lines = [f"| {' | '.join(['', *columns])} |", "|--" * (1 + len(columns)) + "|"]
    for who in answerers:
        own = [found[who, run] for run in RUNS]
        cells = [cell for each in own for cell in (report.spread(each.milliseconds, 1), f"{each.answer:.4f}")]
        lines.append(f"| {' | '.join([who, *cells])} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", choices=list(QUESTIONS), nargs="+", default=list(QUESTIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {report.REPORT.name}")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="opacus")
    settings = "; ".join(f"{name}: q {rate:.4g}, T {steps}, σ {sigma}" for name, (rate, steps, sigma) in RUNS.items())
    for question in arguments.questions:
        title, answerers = QUESTIONS[question]
        table = measure(answerers(), arguments.rounds)
        conditions = report.conditions(arguments.rounds, "dp-accounting", "opacus")
        text = "\n".join([f"## {title}", "", f"{settings}.", "", *table, "", conditions, ""])
        print(text, flush=True)
        if arguments.write:
            report.write(f"accounting {question}", text)


if __name__ == "__main__":
    main()
