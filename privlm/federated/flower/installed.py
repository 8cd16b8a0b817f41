"""Whether Flower is at hand, and in a version whose messages are those that this package was tried with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from privlm.errors import UsageError

FROM, BELOW = (1, 41), (1, 43)
"""Versions of flwr; pyproject.toml says the same of the extra `flower`."""


def require() -> str:
    """The version of flwr. Raises UsageError where it is absent, or another than those that are supported."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        raise UsageError(
            "federated.engine=flower needs Flower, which is not installed: pip install 'privlm[flower]', in an "
            "environment of its own, since it brings older versions of other packages (scripts/flower_env.sh makes one)"
        ) from None
    if not FROM <= _numbers(found) < BELOW:
        raise UsageError(
            f"federated.engine=flower: flwr {found} is installed, and {supported()} is supported: "
            f"pip install 'flwr{supported()}'"
        )
    return found


def supported() -> str:
    """The range, as pip reads it."""
    return f">={FROM[0]}.{FROM[1]},<{BELOW[0]}.{BELOW[1]}"


def _numbers(found: str) -> tuple[int, ...]:
    """1.42.0 -> (1, 42)"""
    return tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
