"""What a bottleneck adapter is made of, as peft writes it into adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from transformers.activations import ACT2FN

from privlm.adapters.bottleneck.registration import PEFT_TYPE
from privlm.adapters.presets import PLACEMENTS, WIRINGS
from privlm.errors import UsageError

LEARNED = "learned"
INITS = ("bert", "mam")
BIASES = ("none", "all", "adapter_only")


class BottleneckError(UsageError, ValueError):
    """A setting of a bottleneck adapter is wrong, or does not fit the model; the message names the field."""


class MergeError(UsageError, NotImplementedError):
    """A bottleneck adapter is not linear: no weight holds it."""


@dataclass
class BottleneckConfig(PeftConfig):
    """Two linear layers with an activation between them, beside layers of a frozen model.

    placement: `adapter_h`, `adapter_p`, `parallel` or `scaled_parallel`: the targets of a published method in this
        architecture (privlm.adapters.presets). wirings: other targets, each with `input`, `output` or `parallel`.
        One of both is given; what a placement stands for is written into `wirings` when the model is known.
    bottleneck_size: m, outputs of the first of the two layers.
    activation: a name of transformers' ACT2FN that has no parameters.
    scale: of the branch; `learned` is a parameter that starts at 1. None is 1, under scaled_parallel `learned`.
    init: `bert` draws both layers from N(0, 0.02^2), so that the model is not the base at first; with `mam` the second
        is zero, and it is.
    dropout: of what enters the branch.
    bias: of the frozen model that trains, too: `none`, `all`, or `adapter_only`, that of the targets.
    modules_to_save: modules that train and are saved whole, as in peft.
    target_modules: the keys of `wirings`, for peft.

    Raises BottleneckError for a value that is none of these.
    """

    placement: str | None = field(default=None)
    wirings: dict[str, str] | None = field(default=None)
    bottleneck_size: int = field(default=256)
    activation: str = field(default="tanh")
    scale: float | str | None = field(default=None)
    init: str = field(default="bert")
    dropout: float = field(default=0.0)
    bias: str = field(default="none")
    modules_to_save: list[str] | None = field(default=None)
    target_modules: Any = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self._require_targets()
        if self.scale is None:
            self.scale = LEARNED if self.placement == "scaled_parallel" else 1.0
        _require("bottleneck_size", self.bottleneck_size, is_right=_is_number(self.bottleneck_size, int)
                        and self.bottleneck_size > 0, wanted="a whole number above 0")  # fmt: skip
        _require("activation", self.activation, is_right=self.activation in activations(),
                        wanted=f"one of {', '.join(activations())}")  # fmt: skip
        _require("scale", self.scale, is_right=self.scale == LEARNED or _is_number(self.scale, int | float),
                        wanted=f"a number or '{LEARNED}'")  # fmt: skip
        _require("init", self.init, is_right=self.init in INITS, wanted=f"one of {', '.join(INITS)}")
        _require("dropout", self.dropout, is_right=_is_number(self.dropout, int | float)
                        and 0 <= self.dropout < 1, wanted="at least 0 and below 1")  # fmt: skip
        _require("bias", self.bias, is_right=self.bias in BIASES, wanted=f"one of {', '.join(BIASES)}")
        if self.placement == "scaled_parallel" and self.scale != LEARNED:
            raise BottleneckError(f"scale: scaled_parallel learns its scale, {self.scale} has no effect; placement="
                                  "'parallel' takes a number")  # fmt: skip

    def place(self, architecture: str) -> None:
        """Writes what `placement` stands for into `wirings` and `target_modules`.

        architecture: `model_type` of the model's configuration.

        Raises BottleneckError where the placement knows no such architecture.
        """
        if self.placement is not None:
            known = PLACEMENTS[self.placement]
            if architecture not in known:
                raise BottleneckError(
                    f"placement: {self.placement} knows {', '.join(sorted(known))}, not '{architecture}'; give wirings="
                    f"{{MODULE: {' | '.join(WIRINGS)}}} with the modules of this model instead"
                )
            self.wirings, self.placement = dict(known[architecture]), None
        assert self.wirings is not None
        self.target_modules = sorted(self.wirings)

    def wiring_of(self, name: str) -> str:
        """Of a module that the targets name. Raises BottleneckError where two of them do, with different wirings."""
        assert self.wirings is not None
        found = {target: wiring for target, wiring in self.wirings.items() if f".{name}".endswith(f".{target}")}
        if len(set(found.values())) != 1:
            raise BottleneckError(f"wirings: {name} is named by {' and '.join(found)}, with different wirings")
        return next(iter(found.values()))

    def _require_targets(self) -> None:
        if (self.placement is None) == (not self.wirings):
            raise BottleneckError(
                f"placement, wirings: one of both says where the adapter stands: placement={' | '.join(PLACEMENTS)}, "
                f"or wirings={{MODULE: {' | '.join(WIRINGS)}}}"
            )
        if self.placement is not None:
            _require("placement", self.placement, is_right=self.placement in PLACEMENTS,
                            wanted=f"one of {', '.join(PLACEMENTS)}")  # fmt: skip
            return
        assert self.wirings is not None
        for target, wiring in self.wirings.items():
            _require(f"wirings[{target!r}]", wiring, is_right=wiring in WIRINGS,
                            wanted=f"one of {', '.join(WIRINGS)}")  # fmt: skip
        if self.target_modules is not None and set(self.target_modules) != set(self.wirings):
            raise BottleneckError("target_modules: the targets are the keys of wirings; leave it out")
        self.target_modules = sorted(self.wirings)


def activations() -> tuple[str, ...]:
    """Names of transformers' activations without parameters."""
    return tuple(sorted(ACT2FN.keys() - {"prelu", "xielu"}))


def _require(name: str, value: Any, *, is_right: bool, wanted: str) -> None:
    if not is_right:
        raise BottleneckError(f"{name} is {value!r}: it must be {wanted}")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
