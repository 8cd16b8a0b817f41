"""Packages of the two mapped folders, which `packages.find` cannot see; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["privlm", "privlm.*"]),
        "privlm.runners",
        *(f"privlm.runners.{name}" for name in find_packages("runners")),
        "privlm.configs",
    ]
)
