"""`privlm audit RUN`: does a run keep the epsilon that it claims? A statistical lower bound from planted canaries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm import files, identity, launch, processes, rundir
from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError
from privlm.privacy.schema import AuditConfig, PrivacyConfig
from privlm.report.audit import facts, lira_table
from privlm.report.page import write_report
from privlm.report.render import console, print_table, to_json
from privlm.report.store import RunRecord, find_run, read_run
from privlm.report.table import Table
from privlm.schema import defaults, problems

EPILOG = """\
forms:
  privlm audit RUN                       a finished run; one without canaries gets an audited twin, trained first
  privlm audit RUN --canaries mislabel   black box: mislabelled records, or random_tokens for models of texts
  privlm audit RUN --lira --shadows 16   membership inference with shadow runs (describes a risk, no verdict)
  privlm audit run task=ewtune           one audited run from the words of `privlm run`
  privlm audit bound --canaries 1000 --guesses 200 --correct 180 --delta 1e-5
                                         the arithmetic alone
  privlm audit many_run --false-positives 3 --without 100 --false-negatives 20 --with 100 --delta 1e-5
                                         the same for many runs with and without one canary (Clopper-Pearson)

The twin has the configuration of the run, and canaries in place of some training records: the same N, sampling rate,
noise and claim. It lies beside the run, is marked as audited and enters no table.
Exit status: 0 PASS, 1 FAIL, 2 wrong usage. PASS is not a proof.
"""

KINDS = ("dirac", "mislabel", "random_tokens")
MAX_CANARIES = 1000
LIRA_SHADOWS = 16


def main(argv: list[str]) -> int:
    """Runs `privlm audit ARGV`; returns 0 for PASS and for what has no verdict, 1 for FAIL."""
    commands: dict[str, Callable[[list[str]], int]] = {"run": _run, "bound": _bound, "many_run": _many_run}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    parser = ArgumentParser(prog="privlm audit", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", metavar="RUN", help="a path, a directory name, or a unique prefix of it or of the hash")
    parser.add_argument("--canaries", choices=KINDS, help="of the twin (default: dirac)")
    parser.add_argument(
        "--num-canaries",
        type=int,
        metavar="M",
        help=f"of the twin (default: {MAX_CANARIES}, or half of the records); a tenth is guessed in, a tenth out",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the coins of the twin (default: 0)")
    parser.add_argument("--lira", action="store_true", help="LiRA with shadow runs instead of a verdict")
    parser.add_argument("--shadows", type=int, default=LIRA_SHADOWS, help=f"shadow runs (default: {LIRA_SHADOWS})")
    parser.add_argument("--json", action="store_true", help="print for machines")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    run = find_run(arguments.run, runs_folder(arguments))
    _ = run.privacy  # raises for a ledger that does not add up
    if not run.finished:
        raise UsageError(f"{run.path} is {run.state}: an audit is of a finished run")
    _require_one_training(run)
    if arguments.lira:
        kind = arguments.canaries or "mislabel"
        if kind == "dirac":
            raise UsageError("--lira attacks losses of records: --canaries mislabel or random_tokens")
        return _lira(run, kind, arguments.num_canaries, arguments.shadows, as_json=arguments.json)
    if run.canaries != "none":
        return _report(run, run, as_json=arguments.json)
    return _report(
        run, _twin(run, arguments.canaries or "dirac", arguments.num_canaries, arguments.seed), as_json=arguments.json
    )


def _run(argv: list[str]) -> int:
    """`privlm audit run WORDS`: trains one audited run and judges it."""
    from privlm.cli.compose import Words, compose
    from privlm.cli.run_options import parse
    from privlm.cli.starting import words_of

    arguments = parse(argv, "audit run", EPILOG)
    words = words_of(arguments)
    overrides = [*words.overrides]
    if not any(word.startswith("privacy.audit.canaries=") for word in overrides):
        overrides.append("privacy.audit.canaries=dirac")
    composed = compose(Words(tuple(overrides), words.config_dirs, words.config_name))
    audited = _train(composed.config, composed.words.overrides, composed.roles, force=arguments.force)
    return _report(audited, audited, as_json=arguments.json)


def _bound(argv: list[str]) -> int:
    """`privlm audit bound`: the lower bound of given counts."""
    from privlm.privacy.audit.one_run import epsilon_lower_bound, mu_lower_bound

    parser = ArgumentParser(prog="privlm audit bound", description=_bound.__doc__, epilog=EPILOG)
    parser.add_argument("--canaries", type=int, required=True, metavar="M", help="number of canaries")
    parser.add_argument("--guesses", type=int, required=True, metavar="R", help="canaries that were guessed")
    parser.add_argument("--correct", type=int, required=True, metavar="V", help="guesses that were right")
    _add_claim(parser)
    arguments = parser.parse_args(argv)
    counts = (arguments.canaries, arguments.guesses, arguments.correct)
    bound = epsilon_lower_bound(*counts, delta=arguments.delta, confidence=arguments.confidence)
    return _print_bound(arguments, bound, mu_lower_bound(*counts, confidence=arguments.confidence))


def _many_run(argv: list[str]) -> int:
    """`privlm audit many_run`: the lower bound from the errors of an attack on runs with and without one canary."""
    from privlm.privacy.audit.many_run import many_run_bound

    parser = ArgumentParser(prog="privlm audit many_run", description=_many_run.__doc__, epilog=EPILOG)
    parser.add_argument("--without", type=int, required=True, metavar="R", help="runs without the canary")
    parser.add_argument("--false-positives", type=int, required=True, metavar="K", help="of them, taken for runs with")
    parser.add_argument("--with", type=int, required=True, metavar="R", dest="with_it", help="runs with the canary")
    parser.add_argument("--false-negatives", type=int, required=True, metavar="K", help="of them, taken for without")
    _add_claim(parser)
    arguments = parser.parse_args(argv)
    bound = many_run_bound(
        num_false_positives=arguments.false_positives,
        num_without=arguments.without,
        num_false_negatives=arguments.false_negatives,
        num_with=arguments.with_it,
        delta=arguments.delta,
        confidence=arguments.confidence,
    )
    return _print_bound(arguments, bound.epsilon, bound.mu)


def _add_claim(parser: ArgumentParser) -> None:
    parser.add_argument("--delta", type=float, required=True, help="of the claim")
    parser.add_argument("--confidence", type=float, default=0.95, help="(default: 0.95)")
    parser.add_argument("--json", action="store_true", help="print for machines")


def _print_bound(arguments: argparse.Namespace, epsilon: float, mu: float) -> int:
    if arguments.json:
        print(json.dumps({"epsilon_lower_bound": epsilon, "mu_estimate": mu}))
    else:
        print(f"epsilon >= {epsilon:.6f} at delta {arguments.delta:g}, confidence {arguments.confidence:g}; ", end="")
        print(f"mu >= {mu:.6f} if the mechanism is Gaussian (estimate)")
    return 0


# --- audited runs ---------------------------------------------------------------------------------------------------


def _require_one_training(run: RunRecord) -> None:
    """Raises UsageError for a federated run with privacy: canaries stand in place of one Trainer's records."""
    privacy = run.privacy or {}
    if "are_disjoint" in privacy or privacy.get("unit") == "client":
        raise UsageError(f"{run.path}: an audit is of one training, and here clients have trained; train one alone")


def _twin(run: RunRecord, kind: str, num_canaries: int | None, seed: int) -> RunRecord:
    """The run of the same configuration with canaries; trained unless it is there already."""
    if run.roles == identity.ROLES_OF_BEFORE:
        raise UsageError(f"{run.name} is of an earlier PrivLM, whose settings lack some of today's: run it again first")
    config = OmegaConf.load(run.path / "config.yaml")
    assert isinstance(config, DictConfig)
    size = (run.privacy or {}).get("dataset_size")
    most = MAX_CANARIES if size is None else min(MAX_CANARIES, size // 2)
    number = most if num_canaries is None else num_canaries
    if size is not None and 2 * number > size:
        raise UsageError(
            f"--num-canaries {number} would replace more than half of the {size} training records: lower it"
        )
    audit = asdict(defaults(PrivacyConfig, "privacy", "dp_sgd").audit) | {
        "canaries": kind,
        "num_canaries": number,
        "guesses_in": number // 10,
        "guesses_out": number // 10,
        "seed": seed,
    }
    settings = OmegaConf.merge(OmegaConf.structured(AuditConfig), audit)
    if found := problems(settings, config, "privacy.audit."):
        raise UsageError("\n".join(found))
    config = OmegaConf.merge(config, {"runs": str(run.path.parent.parent), "privacy": {"audit": audit}})
    print(f"{run.name} holds no canaries: its audited twin has {number} ({kind}, coins {seed})", file=sys.stderr)
    overrides = [*run.overrides, *(f"privacy.audit.{key}={value}" for key, value in audit.items())]
    return _train(config, overrides, run.roles, force=False)


def _train(config: Any, overrides: Any, roles: identity.Roles, *, force: bool) -> RunRecord:
    """Runs a composed configuration as `privlm run` does, unless it is finished."""
    from privlm.cli import starting
    from privlm.cli.compose import Composed, Words

    OmegaConf.set_readonly(config, True)
    chosen_by = {"audit": f"{config.privacy.audit.canaries} (audited run)"}
    composed = Composed(config, Words(tuple(overrides)), chosen_by, roles)
    status = starting.start(composed, force=force, as_json=False, show=False)
    if status != 0:
        sys.exit(status)  # the run has said why
    return read_run(launch.directory_of(config, roles))


def _canaries(audited: RunRecord) -> Path:
    """The folder of the coins and scores of an audited run. Raises UsageError unless it has trained in one stage."""
    folders = sorted(path.parent for path in audited.path.glob("stages/*/audit/coins.json"))
    if len(folders) != 1:
        raise UsageError(f"{audited.path} has trained with canaries in {len(folders)} stages: an audit is of one")
    return folders[0]


def _report(run: RunRecord, audited: RunRecord, *, as_json: bool) -> int:
    """Judges `audited`, and writes what it says into the directories of both."""
    from privlm.privacy.audit.verdict import claim_of, judge

    if not processes.is_main():
        return 0
    audit = judge(_canaries(audited), audited.config["privacy"]["audit"], claim_of(audited.privacy))
    audit |= {"audited_run": audited.name, "is_twin": audited.path != run.path}
    for record in {run.path: run, audited.path: audited}.values():
        _write(record, "audit.json", audit)
    if as_json:
        print(to_json(audit))
    else:
        out = console()
        print_table(Table("audit", f"audit: {audit['verdict']}", ["", ""], facts(audit), [], []), out)
        for remark in (*audit["warnings"], audit["note"]):
            out.print(remark, style="dim", markup=False)
        out.print(f"report   {run.path / 'report.html'}", markup=False, soft_wrap=True)
    return 0 if audit["verdict"] == "PASS" else 1


def _lira(run: RunRecord, kind: str, num_canaries: int | None, num_shadows: int, *, as_json: bool) -> int:
    from privlm.privacy.audit.verdict import describe_lira

    if num_shadows < 2:
        raise UsageError(f"--shadows {num_shadows}: LiRA needs at least 2 shadow runs")
    target, *shadows = [_canaries(_twin(run, kind, num_canaries, seed)) for seed in range(num_shadows + 1)]
    lira = describe_lira(target, shadows)
    _write(run, "lira.json", lira)
    if as_json:
        print(to_json(lira))
    else:
        out = console()
        print_table(lira_table(lira), out)
        out.print(lira["note"], style="dim", markup=False)
    return 0


def _write(run: RunRecord, name: str, content: dict[str, Any]) -> None:
    with rundir.locked(run.path):
        files.write_json(run.path / name, content)
        write_report(run.path)
