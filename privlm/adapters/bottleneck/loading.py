"""Reads a saved bottleneck adapter, whatever name peft's list of methods has for it by now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from privlm.adapters.bottleneck.config import BottleneckConfig, BottleneckError
from privlm.adapters.bottleneck.registration import NAMES

SETTINGS = "adapter_config.json"


def load(base: Any, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """`base` with the adapter that `save_pretrained` wrote into `folder`; frozen unless `is_trainable`.

    Raises BottleneckError where the folder holds no bottleneck adapter, or one of another base.
    """
    folder = Path(folder)
    config = _config(folder)
    config.inference_mode = not is_trainable
    try:
        return PeftModel.from_pretrained(base, str(folder), config=config, is_trainable=is_trainable)
    except (RuntimeError, ValueError) as error:  # torch on other shapes, peft on other modules
        first_line = str(error).partition("\n")[0]
        raise BottleneckError(f"{folder} does not fit this base model ({first_line})") from error


def _config(folder: Path) -> BottleneckConfig:
    try:
        content: Any = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = content.pop("peft_type")
    except FileNotFoundError:
        raise BottleneckError(f"{folder} holds no {SETTINGS}: name the folder that save_pretrained wrote") from None
    except (ValueError, AttributeError, KeyError, TypeError):
        raise BottleneckError(f"{folder / SETTINGS} is not the configuration of a peft adapter") from None
    if kind not in NAMES or "wirings" not in content:
        raise BottleneckError(f"{folder / SETTINGS} is of the method {kind}: load it with PeftModel.from_pretrained")
    try:
        return BottleneckConfig(**content)
    except TypeError as error:
        raise BottleneckError(f"{folder / SETTINGS}: {error}") from None
