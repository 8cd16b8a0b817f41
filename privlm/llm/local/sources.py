"""Where a local backend's model comes from: files, loaded when it is first needed, or a model trained in this run.

No torch until a model is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

from privlm.errors import UsageError
from privlm.llm.local.weights import locate_llm
from privlm.llm.schema import ENCODER, LocalLLMConfig
from privlm.models.locate import download_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from privlm.llm.local.architectures import Model


Precision = Literal["bfloat16", "float16"]


class Loaded(Protocol):
    """A causal language model of transformers (or a peft model around one), its tokenizer, and a digest of what both
    were built from.
    """

    @property
    def model(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def digest(self) -> str: ...


class Source(Protocol):
    """name: for messages. identity: of who answers, part of the call record's key. is_encoder: it continues no text."""

    name: str
    identity: str
    is_encoder: bool

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def model(self) -> Model: ...

    @property
    def window(self) -> int | None:
        """Tokens that the model can read, None where nothing limits them. Raises UsageError where more were asked
        for.
        """

    def asked(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model is in evaluation mode; afterwards it is as it was."""

    def close(self) -> None: ...


class FromFiles:
    """The weights that a configuration names; see Source.

    Raises:
        UsageError: the weights are not at hand.
    """

    def __init__(self, config: LocalLLMConfig) -> None:
        self.config = config
        self.name = config.name
        self.is_encoder = config.family == ENCODER
        self.files = locate_llm(config)
        digest = hashlib.sha256(self.files.fingerprint.encode()).hexdigest()
        self.identity = _identity(config.name, digest, config.dtype, config.context_length)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from privlm.models.causal import load_tokenizer

        download_weights(self.files.weights, self.config.hub_id)
        return load_tokenizer(self.files.weights)

    @cached_property
    def model(self) -> Model:
        import torch

        from privlm.models.causal import apply_peft, build_causal_lm, build_encoder

        download_weights(self.files.weights, self.config.hub_id)
        dtype = getattr(torch, self.config.dtype)
        if self.is_encoder:
            return build_encoder(self.files.weights, dtype, _device(self.config.device))
        model = build_causal_lm(self.files.weights, self.config.random, dtype, _device(self.config.device))
        if self.files.adapter is None:
            return model
        import privlm.adapters.bottleneck  # noqa: F401 - peft knows saved ones from here on

        return apply_peft(model, self.files.adapter)

    @cached_property
    def window(self) -> int | None:
        from privlm.models.causal import context_length

        own = context_length(self.files.weights, self.config.random)
        return _window(own, self.config.context_length, "llm.context_length", self.name)

    def asked(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """Frees the weights; they are loaded again when they are needed."""
        self.__dict__.pop("model", None)


class InMemory:
    """A model that its owner keeps: it is neither moved nor freed; see Source.

    identity: of what the weights are when this is made, not of what they were built from: a digest of all of them.
        The frozen ones count too, since what was trained may be frozen by now.
    dtype: of the computation, by autocast; None: that of the weights.
    """

    def __init__(self, loaded: Loaded, name: str, dtype: Precision | None, context_length: int | None) -> None:
        self.name = name
        self.is_encoder = False
        self.identity = _identity(name, digest_of_weights(loaded), dtype, context_length)
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self._dtype = dtype
        self._context_length = context_length

    @cached_property
    def window(self) -> int | None:
        own = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return _window(own, self._context_length, "context_length", self.name)

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        import torch

        from privlm.models.evaluation_mode import evaluation_mode

        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluation_mode(self.model))
            if self._dtype is not None:
                stack.enter_context(torch.autocast(self.model.device.type, getattr(torch, self._dtype)))
            yield

    def close(self) -> None: ...


def digest_of_weights(loaded: Loaded) -> str:
    """sha256 of `loaded.digest` and of name, type, shape and bytes of every parameter and persistent buffer: about a
    second a gigabyte.
    """
    digest = hashlib.sha256(loaded.digest.encode())
    for name, tensor in loaded.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _identity(name: str, digest: str, dtype: str | None, context_length: int | None) -> str:
    parts = [name, digest[:16], *([dtype] if dtype else [])]
    return " ".join(parts if context_length is None else [*parts, f"context {context_length}"])


def _window(own: int | None, asked: int | None, field: str, name: str) -> int | None:
    if own is not None and asked is not None and asked > own:
        raise UsageError(f"{field}={asked}: '{name}' reads at most {own} tokens")
    return own if asked is None else asked


def _device(name: str) -> str:
    """auto: the GPU if there is one, several in balance; else the CPU."""
    import torch

    if name != "auto":
        return name
    return "cpu" if not torch.cuda.is_available() else "cuda" if torch.cuda.device_count() == 1 else "balanced"
