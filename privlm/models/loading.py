"""How files are loaded: errors become one message, libraries keep silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from privlm.errors import UsageError


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """A damaged or unknown file is for the user to mend: what a loader raises becomes one message."""
    try:
        yield
    except Exception as error:  # of many classes: SafetensorError, UnpicklingError, struct.error, RuntimeError ...
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"{directory} cannot be loaded ({type(error).__name__}: {first_line})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and the report of left-out heads; what matters in it raises."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
