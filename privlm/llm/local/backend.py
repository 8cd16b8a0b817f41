"""Local weights: a causal language model of transformers in this process, or an encoder, which gives features alone.

Weights of files are loaded when they are first needed: a run whose answers are all in the call record loads none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from privlm.errors import UsageError
from privlm.llm.local.sources import FromFiles, InMemory, Loaded, Precision, Source
from privlm.llm.schema import LocalLLMConfig
from privlm.llm.types import Answer, GenerateRequest, Message, Norm, Pooling, Reply, Request, ScoreRequest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from privlm.llm.local.architectures import Model
    from privlm.llm.local.batching import Limits
    from privlm.llm.local.continuation import Prompt
    from privlm.llm.local.scoring import Encoder

BATCH_TOKENS = 8192  # as configs/llm/local.yaml has it
CPU_TEXT_TOKENS = 512  # of given texts read at once: a CPU gains nothing by more, and scores come sooner
CPU_PROMPT_TOKENS = 2048  # of prompts, since decoding is quicker in company


OF_A_CAUSAL_LM = frozenset({"generate", "logprobs", "beams", "top_k", "score", "hidden_states"})
OF_AN_ENCODER = frozenset({"hidden_states"})
"""Capabilities."""


class LocalBackend:
    """Implements privlm.llm.types.Backend.

    model: name, a hash of weights and adapter, and what else changes its answers. batch_tokens: whose keys and values
    are in memory at once, padding included.
    """

    name = "local"
    parallel = 1

    def __init__(self, source: Source, batch_tokens: int) -> None:
        self.model = source.identity
        self.capabilities: frozenset[str] = OF_AN_ENCODER if source.is_encoder else OF_A_CAUSAL_LM
        self._source = source
        self._batch_tokens = batch_tokens

    @classmethod
    def from_files(cls, config: LocalLLMConfig) -> LocalBackend:
        """The weights that a configuration names. Raises UsageError where they are not at hand."""
        return cls(FromFiles(config), config.batch_tokens)

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        *,
        name: str = "trained",
        dtype: Precision | None = None,
        batch_tokens: int = BATCH_TOKENS,
        context_length: int | None = None,
    ) -> LocalBackend:
        """A model that was trained in this run, without a detour over the disk. While it is asked it is in evaluation
        mode; it keeps its device, and `close` does not free it. A model that was trained on is another one, with
        answers of its own in the call record: make a new backend of it.

        loaded: anything with `model`, `tokenizer` and `digest`. name: for messages and the record. dtype: to compute in
        by autocast; None: that of the weights. context_length: tokens, None: all that it can read.
        """
        return cls(InMemory(loaded, name, dtype, context_length), batch_tokens)

    @property
    def window(self) -> int | None:
        """Tokens of a prompt and its answer at most; None: nothing limits them."""
        return self._source.window

    def check_ready(self) -> None:
        """What is at hand was checked when the backend was made; loading it is not cheap."""

    def count_tokens(self, request: Request) -> int | None:
        if isinstance(request, ScoreRequest):
            encoded = self._encoder(request)
            return len(encoded.context) + len(encoded.continuation)
        return len(self._prompt_tokens(request))

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """Scores as their batches are done, then answers as their rows are. Between two replies the model is as its
        owner left it.

        A prompt that does not fit the context length is a client_error, told first.

        Raises:
            UsageError: before any reply, for a continuation that cannot be scored, or messages without a chat template.
        """
        replies = self._replies(requests)
        while True:
            with self._source.asked():
                reply = next(replies, None)
            if reply is None:
                return
            yield reply

    def _replies(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        from privlm.llm.local.continuation import Prompt
        from privlm.llm.local.generation import generate
        from privlm.llm.local.scoring import score

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

    def hidden_states(
        self, texts: Sequence[str], layer: int, pooling: Pooling = "mean", norm: Norm = "raw"
    ) -> Tensor | list[Tensor]:
        """A text that is too long is cut to the context length. See privlm.llm.types.Backend.

        Raises:
            UsageError: the model does not have this layer, norm=final and its final norm is not found, or a text is
                empty and the tokenizer begins none with BOS.
        """
        import torch

        from privlm.llm.local.hidden import hidden_states

        ids = [self._text_tokens(text) for text in texts]
        if not all(ids):
            raise UsageError("an empty text has no hidden states: the tokenizer begins no text with BOS")
        with self._source.asked():
            found = hidden_states(self._lm, ids, layer, pooling, norm, self._limits(CPU_TEXT_TOKENS))
        return found if pooling == "tokens" else torch.stack(found)

    def close(self) -> None:
        """Frees weights that came from files; they are loaded again when they are needed."""
        self._source.close()

    @property
    def _lm(self) -> Model:
        return self._source.model

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self._source.tokenizer

    @cached_property
    def _encoder(self) -> Encoder:
        from privlm.llm.local.scoring import Encoder

        return Encoder(self._tokenizer, self._source.window)

    def _limits(self, read_on_cpu: int) -> Limits:
        from privlm.llm.local.batching import Limits

        most = self._batch_tokens
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

    def _text_tokens(self, text: str) -> list[int]:
        """Cut to the context length; an encoder's texts keep the mark at their end."""
        window = self._source.window
        if self._source.is_encoder:
            return self._tokenizer(text, truncation=window is not None, max_length=window)["input_ids"]
        return self._encoder.begin(text)[:window]

    def _fits(self, prompt: Prompt) -> bool:
        return (
            self._source.window is None
            or len(prompt.tokens) + prompt.request.sampling.max_tokens <= self._source.window
        )

    def _refusal(self, prompt: Prompt) -> Answer:
        detail = (
            f"a prompt of {len(prompt.tokens)} tokens and max_tokens={prompt.request.sampling.max_tokens} exceed the "
            f"context length, {self._source.window} tokens: shorten the prompt or lower max_tokens"
        )
        return Answer("", "client_error", prompt_tokens=len(prompt.tokens), detail=detail)

    def _chat_text(self, prompt: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise UsageError(
                f"'{self._source.name}' has no chat template: ask it with raw text, or choose a chat model"
            )
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise UsageError(f"the chat template of '{self._source.name}' refuses these messages: {error}") from error
