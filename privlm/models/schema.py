"""The schema of the group `model`, and what it shares with the weights of the group `llm`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from privlm.content import known_of
from privlm.schema import setting

CAUSAL_LM = "causal_lm"
PACKAGE = ("package", "package_folder", "gguf_file")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("nf4", "int8")
"""privlm.models.quantized serves them."""


@dataclass
class Weights:
    """Where weights come from: a path, else a random shape, else an installed package, else the hub.

    A user who names one of them by words gets that one: it puts out what of the YAML would go before it.
    """

    name: str = MISSING
    known: list[str] | None = setting(same_run=True, default=None)  # what the name stands for (privlm.content)
    hub_id: str | None = setting(
        instead_of=("path", "random", *PACKAGE), not_with=("path", "random", "package", "package_folder", "gguf_file")
    )
    path: str | None = setting(  # its fingerprint stands for it: moved weights are the same run
        same_run=True, not_with=("random", "hub_id", "package", "package_folder", "sha256", "gguf_file")
    )
    package: str | None = setting(instead_of=("path", "random"), not_with=("random",))
    package_folder: str | None = setting(instead_of=("path", "random"), not_with=("random",))
    sha256: dict[str, str] = setting(instead_of=("path", "random"), not_with=("random", "hub_id"))
    random: dict[str, Any] | None = setting(instead_of=("path", "hub_id", *PACKAGE), not_with=("gguf_file",))


@dataclass
class ModelConfig(Weights):
    """A pretrained or random text encoder with a classification head (configs/model)."""

    pooling: str = setting(options=("mean", "cls"))
    normalize_features: bool = MISSING
    head: str = setting(options=("linear", "mlp"))
    dropout: float | None = setting(at_least=0, below=1)
    max_length: int = setting(above=0)
    pretrained_on: list[str] = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        return shadowed(self, "model")


@dataclass
class CausalLMConfig(Weights):
    """A pretrained or random causal language model that a run trains (configs/model)."""

    family: str = setting(options=(CAUSAL_LM,))
    gguf_file: str | None = setting(instead_of=("path", "random"))
    dtype: str = setting(options=DTYPES)
    max_length: int = setting(above=0)
    pretrained_on: list[str] = MISSING
    quantization: str | None = setting(options=QUANTIZATIONS, default=None)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        return shadowed(self, "model")


def shadowed(config: Any, group: str) -> list[str]:
    """A problem where weights of a configuration would be left unread because of others that it names too.

    group: that `config` belongs to, for the messages. A path goes before all: what it holds is known by its content.
    """
    if config.path:
        return []
    named = [name for name in ("random", "package", "hub_id") if getattr(config, name)]
    if "random" in named and len(named) > 1:
        others = " and ".join(f"{group}.{name}" for name in named[1:])
        return [f"{group}.random leaves {others} unread: set null what is not meant"]
    if named == ["package", "hub_id"] and not _are_the_same(config):
        return [
            f"{group}.package={config.package} goes before {group}.hub_id={config.hub_id}, and {group}.known does not "
            f"say that they hold the same: set {group}.package=null or {group}.hub_id=null"
        ]
    return []


def _are_the_same(config: Any) -> bool:
    """Whether a package stands for a repository: `known` lists it."""
    repositories = {entry.partition("@")[0] for entry in known_of(config) if entry.startswith("hub:")}
    return f"hub:{config.hub_id}" in repositories


def is_causal_lm(config: Any) -> bool:
    """Whether a `model` group describes a causal language model: as an object, as composed, or as a run holds it."""
    return getattr(config, "family", None) == CAUSAL_LM
