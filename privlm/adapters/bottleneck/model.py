"""Puts bottleneck adapters into a model: peft's tuner for this method."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from privlm.adapters.bottleneck.config import BottleneckConfig, MergeError
from privlm.adapters.bottleneck.layer import NO_MERGE, BottleneckLayer
from privlm.adapters.bottleneck.registration import PREFIX


class BottleneckModel(BaseTuner):
    """What `get_peft_model` makes of a model and a BottleneckConfig; not called by users."""

    prefix: str = PREFIX
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - of the base class; placements take its place

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> PeftConfig:
        peft_config.place(model_config.get("model_type", "model"))
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Raises NoMatchingPeftModuleError for a target without a module; peft is content with one that has it."""
        names = [f".{name}" for name, _ in model.named_modules()]
        for target in peft_config.wirings:
            if not any(name.endswith(f".{target}") for name in names):
                raise NoMatchingPeftModuleError(f"wirings: no module of the model is named '{target}'")

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,  # type: ignore[override]
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.add(current_key, adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, current_key, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a second adapter trains once it is the active one
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        raise MergeError(NO_MERGE)
