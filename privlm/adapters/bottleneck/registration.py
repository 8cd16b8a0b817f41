"""Makes `bottleneck` a method of peft, beside LoRA and the others."""

from __future__ import annotations

from typing import Any

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from privlm.adapters.enum_member import add_member

PREFIX = "bottleneck_"
NAMES = ("BOTTLENECK", "PRIVLM_BOTTLENECK")


def _is_free(name: str) -> bool:
    """Or ours, of this module before it was loaded again."""
    if name not in PeftType.__members__:
        return True
    registered: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name])
    return registered is not None and registered.__module__.startswith("privlm.")


PEFT_TYPE: Any = add_member(PeftType, next(filter(_is_free, NAMES)))
"""Our member of PeftType; the second name where a peft of the future brings a method of the first."""


def register(config_cls: type, model_cls: type) -> None:
    """From here on `PeftModel.from_pretrained` knows checkpoints of this method."""
    for mapping in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING):
        mapping.pop(PEFT_TYPE, None)
    register_peft_method(name=PEFT_TYPE.value.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
