"""The typed configuration: one field a group, and the schemas that YAML files name.

Schemas stand beside the code that reads them, values in configs/ (no default is written twice): a field without a value
in the YAML is an error of the YAML. Imports nothing heavy and nothing of Hydra: schemas are registered by
privlm.cli.compose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from privlm.adapters.schema import AdapterConfig
from privlm.data.schema import DataConfig, InstructionData
from privlm.diffusion.image_schema import ImagesConfig
from privlm.diffusion.schema import PipelineConfig
from privlm.federated.schema import FederatedConfig
from privlm.llm.schema import EndpointLLMConfig, LLMBudget, LocalLLMConfig, ReplayLLMConfig
from privlm.masking import held_in_config
from privlm.models.schema import CausalLMConfig, ModelConfig
from privlm.privacy.schema import (
    AuditConfig,
    PrivacyConfig,
    is_private,
    is_private_by_client,
    is_private_by_record,
)
from privlm.schema import configs_dir, defaults, problems, setting
from privlm.tracking import TrackerConfig
from privlm.training.schema import TrainerConfig

__all__ = [
    "SCHEMAS",
    "AdapterConfig",
    "AuditConfig",
    "CausalLMConfig",
    "Config",
    "DataConfig",
    "EndpointLLMConfig",
    "FederatedConfig",
    "ImagesConfig",
    "InstructionData",
    "LLMBudget",
    "LocalLLMConfig",
    "ModelConfig",
    "PipelineConfig",
    "PrivacyConfig",
    "ReplayLLMConfig",
    "TrackerConfig",
    "TrainerConfig",
    "check",
    "configs_dir",
    "defaults",
    "is_private",
    "is_private_by_client",
    "is_private_by_record",
]


@dataclass
class Config:
    """One experiment: every group holds the schema that its YAML names. A task that trains nothing has no model and no
    adapter, one that asks nobody has no llm, one without clients no federated.

    when: the lines of a recipe that fit one choice (privlm.cli.when); sweep: how many runs are worked on. A composed
    configuration has neither.
    """

    scale: str = setting(options=("smoke", "small", "paper"))
    seed: int = setting(same_cell=True)
    runs: str = setting(same_run=True)
    task: Any = MISSING
    model: Any = None
    data: Any = None
    adapter: Any = None
    llm: Any = None
    federated: Any = None
    privacy: Any = MISSING
    trainer: Any = MISSING
    tracker: Any = setting(same_run=True)
    when: dict[str, str] = field(default_factory=dict)
    sweep: Any = None


SCHEMAS: dict[str, dict[str, type]] = {
    "run": {"run": Config},
    "data": {"text_classification": DataConfig, "instructions": InstructionData, "images": ImagesConfig},
    "model": {"encoder": ModelConfig, "causal_lm": CausalLMConfig, "pipeline": PipelineConfig},
    "adapter": {"adapter": AdapterConfig},
    "federated": {"federated": FederatedConfig},
    "privacy": {"privacy": PrivacyConfig},
    "trainer": {"trainer": TrainerConfig},
    "tracker": {"tracker": TrackerConfig},
    "llm": {"local": LocalLLMConfig, "endpoint": EndpointLLMConfig, "replay": ReplayLLMConfig},
}
"""Schema group -> name -> dataclass, as the YAML files name them: `/schema/<group>@_here_: <name>`."""


def check(config: DictConfig) -> list[str]:
    """Every problem of meaning, of all groups at once: one sentence each that names the field and the remedy."""
    content: Any = OmegaConf.to_container(config, resolve=True)
    return problems(config, config) + held_in_config(content)
