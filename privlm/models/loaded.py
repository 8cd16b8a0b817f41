"""A model that a run trains, with what is needed to make it again and to keep what was trained of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from privlm.models.saving import load_trained, save_trained


@dataclass(frozen=True)
class Loaded:
    """A model before or after its training.

    digest: names the base weights and all that makes the model of them, 64 hexadecimal digits.
    build: makes the untrained model again, in evaluation mode: the same weights, the adapter applied with the same
        seed. Downloads nothing, and leaves torch's global generator as it is.
    save: writes what training can have changed of such a model into a folder.
    load: puts it into a model made by `build`; raises UsageError for a folder that does not fit.
    """

    model: nn.Module
    tokenizer: Any
    digest: str
    build: Callable[[], nn.Module]
    save: Callable[[nn.Module, Path], None]
    load: Callable[[nn.Module, Path], None]

    @classmethod
    def of(cls, build: Callable[[], nn.Module], *, made_of: Any, tokenizer: Any = None) -> Loaded:
        """A model of any kind, saved and loaded by what trains in it (privlm.models.saving).

        build: makes the untrained model; may draw from torch's global generator, which is put back.
        made_of: names weights, settings and seed (JSON), the same for the same untrained model and for no other.
        """
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

        def undisturbed() -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                return build().eval()

        return cls(
            model=undisturbed(),
            tokenizer=tokenizer,
            digest=digest,
            build=undisturbed,
            save=lambda model, folder: save_trained(model, folder, digest),
            load=lambda model, folder: load_trained(model, folder, digest),
        )

    def fresh(self) -> Loaded:
        """The same with a newly built, untrained model."""
        return replace(self, model=self.build())
