"""A real SLURM for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm import Cluster


@pytest.fixture(scope="session", autouse=True)
def root_on_debian() -> None:
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started by root")
    if shutil.which("apt-get") is None:
        pytest.skip("SLURM is installed by apt-get, which is not here")
    if shutil.which("slurmctld") is None:
        try:
            with Cluster():
                pass
        except AssertionError as failure:
            if "apt-get does not install" not in str(failure):
                raise
            pytest.skip("apt-get cannot install SLURM: no mirror answers")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for those of sockets, which are short ones."""
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def cluster(root_on_debian: None) -> Iterator[Cluster]:
    """Two nodes, partitions main and urgent. Tests that stop or kill its daemons take a Cluster() of their own."""
    with Cluster() as cluster:
        yield cluster
