"""How files are loaded: errors become one message, libraries keep silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
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


def require_fit(report: dict[str, Any], directory: Path, left_out: str = "") -> None:
    """Raises UsageError where the weights of a folder are not all that its config.json promises.

    report: loading info of transformers. left_out: beginning of the names that may be absent.
    """
    missing = [name for name in report["missing_keys"] if not (left_out and name.startswith(left_out))]
    if unfit := sorted(map(str, [*missing, *report["mismatched_keys"]])):
        raise UsageError(
            f"{directory}: weights do not fit config.json (first missing: {unfit[0]}); is it half written?"
        )


def require_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, source: object) -> None:
    """Raises UsageError where the tokenizer knows tokens that the model has no embedding for: none are added here.

    model: of transformers. source: where both come from.
    """
    embedding: Any = model.get_input_embeddings()
    embedded = embedding.weight.shape[0]
    token, last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if last >= embedded:
        raise UsageError(
            f"{source}: the model embeds {embedded:,} tokens, its tokenizer has {last + 1:,} (the last: {token!r}); "
            "use the tokenizer of these weights, or save weights whose embedding was enlarged"
        )


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
