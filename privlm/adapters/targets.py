"""Which modules of a model an adapter changes, from their names and shapes. No torch.

Shapes are those of weights, by module name. A target is a module's full name or its end after a dot, as in peft.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from privlm.adapters.presets import FUSED_QKV, IA3, INPUT, LORA, LORA_EMNLP, ONE_WIRING, OUTPUT, PLACEMENTS, WIRINGS
from privlm.adapters.schema import AdapterConfig
from privlm.errors import UsageError

Shape = tuple[int, int]
Value = TypeVar("Value")

LORA_LIKE = {"lora": LORA, "dora": LORA, "lora_emnlp": LORA_EMNLP}
"""Adapters of low-rank pairs -> their targets by architecture."""


class Layer(NamedTuple):
    """Numbers of inputs and outputs of a linear layer."""

    inputs: int
    outputs: int


class Bottleneck(NamedTuple):
    """What stands at a layer, and numbers of inputs and outputs of the branch."""

    wiring: str
    inputs: int
    outputs: int


def require_trainable(config: AdapterConfig, model_type: str, *, has_head: bool) -> None:
    """Raises UsageError where adapter=head finds nothing to train, or adapter=none is asked to train something."""
    if config.name == "none" and config.train_head:
        raise UsageError("adapter.train_head=true: adapter=none trains nothing; adapter=head trains the head alone")
    if config.name != "head":
        return
    if not has_head:
        raise UsageError(f"adapter=head: {model_type} has no head beside it; choose adapter=lora, rgp or full")
    if not config.train_head:
        raise UsageError("adapter.train_head=false leaves adapter=head nothing to train")


def lora_targets(config: AdapterConfig, model_type: str, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The modules among `shapes` that `adapter.target_modules` or the preset names.

    Raises:
        UsageError: a setting of LoRA is absent, the rank exceeds a weight's, no preset, or a target without a module.
    """
    _require_settings(config, "rank", "alpha", "dropout")
    assert config.rank is not None
    targets = config.target_modules or LORA_LIKE[config.name].get(model_type)
    if not targets:
        raise UsageError(f"adapter.target_modules: no preset for '{model_type}'; list the modules to adapt")
    chosen = _named(targets, shapes, f"Linear or Embedding of {model_type}")
    _refuse_excess_rank(config.rank, chosen)
    return chosen


def fused_layers(config: AdapterConfig, model_type: str, chosen: dict[str, Shape]) -> list[str]:
    """The layers among `chosen` of which adapter.fused_qkv=qv adapts the first and the last third of the outputs.

    That is what the released code of LLM-Adapters (arXiv 2304.01933) does where LoRA has one target, queries, keys and
    values in one. Where these lie one after the other (gpt2) they are queries and values; bloom and gpt_neox hold them
    head by head, so that it is a third of the heads at each end.

    Raises UsageError where no layer is such a one, and under DoRA.
    """
    if getattr(config, "fused_qkv", None) != "qv":  # a run of before has no such field
        return []
    if config.name == "dora":
        raise UsageError("adapter.fused_qkv=qv: adapter=dora adapts whole layers; use adapter=lora")
    fused = FUSED_QKV.get(model_type)
    found = [name for name in chosen if fused is not None and f".{name}".endswith(f".{fused}")]
    if not found:
        raise UsageError(
            f"adapter.fused_qkv=qv: no target of {model_type} holds queries, keys and values at once; leave it out, "
            "and name the projections by adapter.target_modules"
        )
    return found


def fused_note(config: AdapterConfig, model_type: str) -> str | None:
    """Which outputs of a layer of queries, keys and values LoRA adapts, for a runner to tell; None where it adapts
    none: the two ways have as many parameters, and other results.
    """
    fused = FUSED_QKV.get(model_type)
    targets = config.target_modules or LORA_LIKE.get(config.name, {}).get(model_type, [])
    if fused is None or not any(
        f".{fused}".endswith(f".{target}") or target.endswith(f".{fused}") for target in targets
    ):
        return None
    if getattr(config, "fused_qkv", None) == "qv":
        return f"LoRA adapts the first and the last third of the outputs of {fused} (adapter.fused_qkv=qv)"
    return f"LoRA adapts all outputs of {fused} (adapter.fused_qkv=all)"


def ia3_targets(
    config: AdapterConfig, model_type: str, layers: dict[str, Layer]
) -> tuple[dict[str, Layer], dict[str, Layer]]:
    """Layers whose outputs are scaled, and layers whose inputs are.

    `adapter.target_modules` names others; those of them that end like a feedforward layer of the preset have their
    inputs scaled.

    Raises UsageError where there is no preset, or a target without a module.
    """
    if model_type not in IA3 and not config.target_modules:
        raise UsageError(
            f"adapter.target_modules: no preset of adapter=ia3 for '{model_type}'; list the modules whose outputs are "
            "to be scaled"
        )
    scaled, feedforward = IA3.get(model_type, ([], []))
    entering = _named(feedforward, layers, f"Linear layer of {model_type}")
    chosen = _named(config.target_modules or [*scaled, *feedforward], layers, f"Linear layer of {model_type}")
    return (
        {name: layer for name, layer in chosen.items() if name not in entering},
        {name: layer for name, layer in chosen.items() if name in entering},
    )


def wirings(config: AdapterConfig, model_type: str) -> dict[str, str]:
    """Target -> wiring of a bottleneck adapter.

    Raises UsageError where a setting is absent, both ways to name targets are used, or there is no preset.
    """
    _require_settings(config, "bottleneck_size", "activation", "scale", "init", "dropout")
    if config.wirings and config.target_modules:
        raise UsageError("adapter.target_modules, adapter.wirings: give one of them; wirings says more")
    if config.wirings:
        return dict(config.wirings)
    if config.target_modules:
        if config.name not in ONE_WIRING:
            named = ",".join(f"{module}: WIRING" for module in config.target_modules)
            raise UsageError(
                f"adapter.target_modules: adapter={config.name} has more than one wiring; give adapter.wirings="
                f"{{{named}}}, WIRING one of {', '.join(WIRINGS)}"
            )
        return dict.fromkeys(config.target_modules, ONE_WIRING[config.name])
    known = PLACEMENTS[config.name]
    if model_type not in known:
        raise UsageError(
            f"adapter={config.name} has a preset for {', '.join(sorted(known))}, and none for '{model_type}'; give "
            f"adapter.wirings={{MODULE: {'|'.join(WIRINGS)}}} with the modules of this model"
        )
    return dict(known[model_type])


def bottlenecks(config: AdapterConfig, model_type: str, layers: dict[str, Layer]) -> dict[str, Bottleneck]:
    """What a bottleneck adapter puts at each of `layers` that it names.

    Raises UsageError as `wirings`, for a target without a module, and for a module that two targets name differently.
    """
    found: dict[str, Bottleneck] = {}
    for target, wiring in wirings(config, model_type).items():
        for name, (inputs, outputs) in _named([target], layers, f"Linear layer of {model_type}", "wirings").items():
            entering, leaving = outputs if wiring == OUTPUT else inputs, inputs if wiring == INPUT else outputs
            if name in found and found[name].wiring != wiring:
                raise UsageError(f"adapter.wirings: {name} is named twice, as {found[name].wiring} and as {wiring}")
            found[name] = Bottleneck(wiring, entering, leaving)
    return found


def require_virtual_tokens(config: AdapterConfig, model_type: str, *, is_causal_lm: bool) -> int:
    """How many. Raises UsageError where the model is none that reads them, or their number is absent."""
    if not is_causal_lm:
        raise UsageError(
            f"adapter={config.name}: {model_type} is no causal language model, which alone reads virtual tokens"
        )
    _require_settings(config, "num_virtual_tokens")
    assert config.num_virtual_tokens is not None
    return config.num_virtual_tokens


def rgp_targets(config: AdapterConfig, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """The Linear layers among `shapes` that `adapter.target_modules` names, or all.

    shapes: without the layer that gives the logits of a language model.

    Raises:
        UsageError: a setting of RGP is absent, the rank exceeds a weight's, no Linear layer, or a target without one.
    """
    _require_settings(config, "rank", "power_iterations", "other_params")
    assert config.rank is not None
    if not shapes:
        raise UsageError("adapter=rgp: the model has no Linear layer to reparametrize; choose another adapter")
    chosen = _named(config.target_modules, shapes, "Linear layer") if config.target_modules else shapes
    _refuse_excess_rank(config.rank, chosen)
    return chosen


def _require_settings(config: AdapterConfig, *names: str) -> None:
    if any(getattr(config, name, None) is None for name in names):
        number = {1: "it", 2: "both", 3: "all three"}.get(len(names), "all of them")
        raise UsageError(f"{', '.join(f'adapter.{name}' for name in names)}: adapter={config.name} needs {number}")


def _named(targets: list[str], modules: dict[str, Value], kind: str, field: str = "target_modules") -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for target in targets:
        matched = {name: value for name, value in modules.items() if f".{name}".endswith(f".{target}")}
        if not matched:
            raise UsageError(f"adapter.{field}: no {kind} is named '{target}'")
        chosen |= matched
    return chosen


def _refuse_excess_rank(rank: int, chosen: dict[str, Shape]) -> None:
    for name, shape in chosen.items():
        if rank > min(shape):
            raise UsageError(f"adapter.rank={rank} exceeds the rank of {name}, {shape[0]} x {shape[1]}")
