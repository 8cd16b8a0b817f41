"""Finds local weights and their adapter before anything heavy is imported. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privlm.content import Content, source_name
from privlm.errors import UsageError
from privlm.files import sha256_file
from privlm.llm.schema import LocalLLMConfig
from privlm.models.locate import ModelFiles, content_of, locate_model

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class LLMFiles:
    """fingerprint: of the weights' content and the adapter's."""

    weights: ModelFiles
    adapter: Path | None
    fingerprint: str


def locate_llm(config: LocalLLMConfig) -> LLMFiles:
    """Finds what `config` names, as `privlm.models.locate.locate_model` does.

    Raises:
        UsageError: nothing is at hand (says what to do), or the adapter is incomplete or of another base.
    """
    weights = locate_model(config, "llm")
    if config.adapter is None:
        return LLMFiles(weights, None, weights.fingerprint)
    adapter = Path(config.adapter).expanduser()
    _check_adapter(adapter, config.hub_id if config.path is None else None)
    digests = "".join(sha256_file(path) for path in (adapter / "adapter_config.json", _adapter_weights(adapter)))
    digest = hashlib.sha256(f"{weights.fingerprint}{digests}".encode()).hexdigest()
    return LLMFiles(weights, adapter, f"adapted:{digest}")


def llm_contents(config: Any) -> dict[str, Content]:
    """What is behind the name of the group `llm`, for a runner's `contents`: of local weights, which an adapter makes
    own ones. Whoever is asked over a server or replayed from a file is known by name alone.
    """
    if config is None or config.backend != "local":
        return {}
    if config.adapter is None:
        return {"llm": content_of(config, "llm")}
    return {"llm": Content(source_name(config.adapter), locate_llm(config).fingerprint, known=False)}


def _check_adapter(adapter: Path, hub_id: str | None) -> None:
    path = adapter / "adapter_config.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        base = content.get("base_model_name_or_path")
    except FileNotFoundError:
        raise UsageError(f"llm.adapter: {adapter} holds no adapter_config.json") from None
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
        raise UsageError(f"{path}: not the configuration of a peft adapter") from None
    _adapter_weights(adapter)
    is_repository = isinstance(base, str) and base.count("/") == 1 and not Path(base).exists()
    if hub_id and is_repository and base != hub_id:
        raise UsageError(f"llm.adapter: {adapter} was trained on {base}, not on {hub_id}")


def _adapter_weights(adapter: Path) -> Path:
    for name in ADAPTER_WEIGHTS:
        if (adapter / name).is_file():
            return adapter / name
    raise UsageError(f"llm.adapter: {adapter} holds no {ADAPTER_WEIGHTS[0]}")
