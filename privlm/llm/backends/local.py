"""Local weights: a causal language model of transformers in this process.

Weights are loaded when they are first needed: a run whose answers are all in the call record loads none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from privlm.config import LocalLLMConfig
from privlm.errors import UsageError
from privlm.llm.types import Answer, GenerateRequest, Message, Reply, Request, ScoreRequest
from privlm.llm.weights import locate_llm
from privlm.models.files import download_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from privlm.llm.batching import Limits
    from privlm.llm.continuation import Prompt
    from privlm.llm.scoring import Encoder
    from privlm.models.causal import CausalLM

CPU_TEXT_TOKENS = 512  # of given texts read at once: a CPU gains nothing by more, and scores come sooner
CPU_PROMPT_TOKENS = 2048  # of prompts, since decoding is quicker in company


class LocalBackend:
    """Implements privlm.llm.types.Backend.

    model: name, a hash of weights and adapter, and what else changes its answers.

    Raises:
        UsageError: the weights are not at hand.
    """

    name = "local"
    capabilities = frozenset({"generate", "logprobs", "beams", "top_k", "score", "hidden_states"})
    parallel = 1

    def __init__(self, config: LocalLLMConfig) -> None:
        self.config = config
        self.files = locate_llm(config)
        digest = hashlib.sha256(self.files.fingerprint.encode()).hexdigest()[:16]
        parts = [config.name, digest, config.dtype]
        if config.context_length is not None:
            parts.append(f"context {config.context_length}")
        self.model = " ".join(parts)

    def check_ready(self) -> None:
        """Files are checked when the backend is made; loading them is not cheap."""

    def count_tokens(self, request: Request) -> int | None:
        if isinstance(request, ScoreRequest):
            encoded = self._encoder(request)
            return len(encoded.context) + len(encoded.continuation)
        return len(self._prompt_tokens(request))

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Scores as their batches are done, then answers as their rows are.

        A prompt that does not fit the context length is a client_error, told first.

        Raises:
            UsageError: before any reply, for a continuation that cannot be scored, or messages without a chat template.
        """
        from privlm.llm.continuation import Prompt
        from privlm.llm.generation import generate
        from privlm.llm.scoring import score

        texts = {i: self._encoder(request) for i, request in enumerate(requests) if isinstance(request, ScoreRequest)}
        prompts = {
            i: Prompt(tuple(self._prompt_tokens(request)), request)
            for i, request in enumerate(requests)
            if isinstance(request, GenerateRequest)
        }
        for i in [i for i, prompt in prompts.items() if not self._fits(prompt)]:
            yield i, self._refusal(prompts.pop(i))
        if texts:
            indices = list(texts)
            for i, reply in score(self._lm, list(texts.values()), self._limits(CPU_TEXT_TOKENS)):
                yield indices[i], reply
        if prompts:
            indices = list(prompts)
            stop_tokens, limits = self._stop_tokens, self._limits(CPU_PROMPT_TOKENS)
            for i, answer in generate(self._lm, self._tokenizer, list(prompts.values()), stop_tokens, limits):
                yield indices[i], answer

    def hidden_states(self, texts: Sequence[str], layer: int) -> Tensor:
        """A text that is too long is cut to the context length. See privlm.llm.types.Backend.

        Raises:
            UsageError: the model does not have this layer, or a text is empty and the tokenizer begins none with BOS.
        """
        import torch

        from privlm.llm.batching import batches, output_layer_sees, pad_right

        ids = [self._encoder.begin(text)[: self._window] for text in texts]
        if not all(ids):
            raise UsageError("an empty text has no hidden states: the tokenizer begins no text with BOS")
        num_layers = self._lm.config.num_hidden_layers
        if not -num_layers - 1 <= layer <= num_layers:
            raise UsageError(f"layer {layer}: '{self.config.name}' has layers 0 (the embedding) to {num_layers}")
        means: dict[int, Tensor] = {}
        nowhere = torch.empty(0, dtype=torch.long)
        lengths = [len(row) for row in ids]
        with torch.no_grad():  # not inference_mode: callers train on what they get
            for batch in batches(self._limits(CPU_TEXT_TOKENS), lengths, lengths):
                ids_BT = pad_right([ids[i] for i in batch], self._lm)
                with output_layer_sees(self._lm, nowhere, nowhere):
                    output = self._lm(input_ids=ids_BT, output_hidden_states=True)
                hidden_BTd = output.hidden_states[layer].float()
                means |= {i: hidden_BTd[row, : len(ids[i])].mean(0).cpu() for row, i in enumerate(batch)}
        return torch.stack([means[i] for i in range(len(texts))])

    def close(self) -> None:
        """Frees the weights; they are loaded again when they are needed."""
        self.__dict__.pop("_lm", None)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from privlm.models.causal import load_tokenizer

        download_weights(self.files.weights, self.config.hub_id)
        return load_tokenizer(self.files.weights)

    @cached_property
    def _encoder(self) -> Encoder:
        from privlm.llm.scoring import Encoder

        return Encoder(self._tokenizer, self._window)

    @cached_property
    def _lm(self) -> CausalLM:
        import torch

        from privlm.models.causal import apply_peft, load_causal_lm

        download_weights(self.files.weights, self.config.hub_id)
        dtype = getattr(torch, self.config.dtype)
        model = load_causal_lm(self.files.weights, self.config.random, dtype, _device(self.config.device))
        return model if self.files.adapter is None else apply_peft(model, self.files.adapter)

    @cached_property
    def _window(self) -> int | None:
        """Tokens that the model can read."""
        from privlm.models.causal import context_length

        own = context_length(self.files.weights, self.config.random)
        asked = self.config.context_length
        if own is not None and asked is not None and asked > own:
            raise UsageError(f"llm.context_length={asked}: '{self.config.name}' reads at most {own} tokens")
        return own if asked is None else asked

    def _limits(self, read_on_cpu: int) -> Limits:
        from privlm.llm.batching import Limits

        most = self.config.batch_tokens
        return Limits(held=most, read=min(most, read_on_cpu) if self._lm.device.type == "cpu" else most)

    @cached_property
    def _stop_tokens(self) -> frozenset[int]:
        configured: Any = getattr(self._lm.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return frozenset({*listed, self._tokenizer.eos_token_id} - {None})

    def _prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Raises UsageError: no chat template for messages, or nothing to continue."""
        if isinstance(request.prompt, str):
            tokens = self._encoder.begin(request.prompt)
        else:
            tokens = self._tokenizer(self._chat_text(request.prompt), add_special_tokens=False)["input_ids"]
        if not tokens:
            raise UsageError("an empty prompt cannot be continued: the tokenizer begins no text with BOS")
        return tokens

    def _fits(self, prompt: Prompt) -> bool:
        return self._window is None or len(prompt.tokens) + prompt.request.sampling.max_tokens <= self._window

    def _refusal(self, prompt: Prompt) -> Answer:
        detail = (
            f"a prompt of {len(prompt.tokens)} tokens and max_tokens={prompt.request.sampling.max_tokens} exceed the "
            f"context length, {self._window} tokens: shorten the prompt or lower max_tokens"
        )
        return Answer("", "client_error", prompt_tokens=len(prompt.tokens), detail=detail)

    def _chat_text(self, prompt: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise UsageError(f"'{self.config.name}' has no chat template: ask it with raw text, or choose a chat model")
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UsageError(f"the chat template of '{self.config.name}' refuses these messages: {error}") from error


def _device(name: str) -> str:
    """auto: the GPU if there is one, several in balance; else the CPU."""
    import torch

    if name != "auto":
        return name
    return "cpu" if not torch.cuda.is_available() else "cuda" if torch.cuda.device_count() == 1 else "balanced"
