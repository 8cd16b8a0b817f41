"""Where a result was made: versions, machine, code (env.json)."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import privlm
from privlm.masking import mask_text

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "hydra-core",
    "omegaconf",
    "dp-accounting",
    "numpy",
    "scipy",
    "safetensors",
)


def describe() -> dict[str, Any]:
    """The content of env.json; imports nothing heavy."""
    commit, dirty = code_version()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpu": gpu(),
        "packages": package_versions(PACKAGES),
        "privlm": privlm.__version__,
        "git_commit": commit,
        "dirty": dirty,
        "command": command(),
    }


def command() -> str:
    """What was typed, its secrets masked."""
    return mask_text(" ".join(["privlm", *sys.argv[1:]]))


def package_versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed."""
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code_version() -> tuple[str | None, bool | None]:
    """(commit, whether files differ from it) of the checkout that privlm runs from; (None, None) when installed."""
    root = Path(privlm.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None, None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def code_identity() -> dict[str, str | None]:
    """Which code runs here: the commit and the digest of what differs from it, or of an installation the version."""
    commit, dirty = code_version()
    root = Path(privlm.__file__).resolve().parent.parent
    digest = hashlib.sha256(_git(root, "diff", "HEAD").encode()).hexdigest() if dirty else None
    return {"commit": commit, "diff": digest, "version": privlm.__version__}


def gpu() -> str | None:
    """Names of the NVIDIA GPUs as the driver lists them, None without one."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(listed.stdout.split("\n")[:-1]) or None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
