"""How files are loaded: errors become one message, libraries keep silent, and no folder runs code of its own.

transformers would run the modules that a folder brings along after one `y` on standard input; here every call says no.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from privlm.errors import UsageError

logger = logging.getLogger("privlm")

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For every from_pretrained and from_config: architectures of transformers alone."""

NO_PICKLE: dict[str, Any] = {**NO_CODE, "weights_only": True}
"""For weights: tensors alone, of an old .bin file too."""

FILES_THAT_NAME_CODE = ("config.json", "tokenizer_config.json", "processor_config.json")


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """A damaged or unknown file is for the user to mend: what a loader raises becomes one message."""
    try:
        yield
    except Exception as error:  # of many classes: SafetensorError, UnpicklingError, struct.error, RuntimeError ...
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"{directory} cannot be loaded ({type(error).__name__}: {first_line})") from error


def refuse_own_code(directory: Path) -> None:
    """What a model folder brings along to be run is not run: it is refused where it would be needed, and said else.

    Raises UsageError where config.json names an architecture of the folder's own, or attention code of a hub; and for
    an adapter beside the weights, for which transformers loads the base that it names instead of this folder.
    """
    if (directory / "adapter_config.json").is_file():
        raise UsageError(f"{directory} holds an adapter beside its weights: move adapter_config.json away")
    settings = {name: _settings(directory / name) for name in FILES_THAT_NAME_CODE}
    kernel = next((value for name, value in settings["config.json"].items() if "attn_implementation" in name), None)
    if "/" in str(kernel):
        raise UsageError(
            f"{directory / 'config.json'}: attention code of a hub ({kernel}) is never run; remove the entry"
        )
    named = [name for name, content in settings.items() if "auto_map" in content]
    if not named:
        return
    kind = settings["config.json"].get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UsageError(
            f"{directory / named[0]}: auto_map names code of the folder's own, which is never run, and transformers "
            f"has no architecture '{kind}': use a model of an architecture that it has"
        )
    logger.warning(
        "%s: the code that auto_map names is not run: the architecture %s of transformers takes its place",
        directory / named[0], kind,
    )  # fmt: skip


def refuse_adapter_code(adapter: Path) -> None:
    """Raises UsageError for an adapter that names a module to be imported."""
    if _settings(adapter / "adapter_config.json").get("megatron_config"):
        raise UsageError(
            f"{adapter / 'adapter_config.json'}: megatron_config names code, which is never run for an adapter"
        )


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads it says what is wrong
        return {}
    return content if isinstance(content, dict) else {}


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
