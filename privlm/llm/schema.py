"""The schemas of the group `llm`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from privlm.masking import mask_text
from privlm.models.schema import DTYPES, Weights, shadowed
from privlm.schema import setting


@dataclass
class LLMBudget:
    """Where asking stops cleanly; null: no limit. What the call record answers costs nothing."""

    calls: int | None = setting(at_least=0)
    tokens: int | None = setting(at_least=0)
    usd: float | None = setting(at_least=0)
    seconds: float | None = setting(at_least=0)


@dataclass
class LLMConfig:
    """Whoever is asked (configs/llm), and how the answers are kept. Each backend adds its own fields."""

    name: str = MISSING
    backend: str = setting(options=("local", "endpoint", "replay"))
    context_length: int | None = setting(above=0)
    cache: str = setting(options=("off", "read", "write", "replay_only"), same_run=True)
    cache_dir: str | None = setting(same_run=True)
    trace: str = setting(options=("full", "hash"), same_run=True)
    budget: LLMBudget = setting(same_run=True)  # a larger budget goes on with the same run

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        price = getattr(self, "price", None)
        if self.budget.usd is None or (price is not None and None not in (price.input, price.output)):
            return []
        return ["llm.budget.usd needs llm.price.input and llm.price.output of a server: without them no cost is known"]


ENCODER = "encoder"


@dataclass
class LocalLLMConfig(LLMConfig, Weights):
    """A language model of transformers in this process. family: null, it continues texts; encoder: it gives features of
    them alone.
    """

    family: str | None = setting(options=(ENCODER,), default=None)
    adapter: str | None = setting(same_run=True)  # its fingerprint stands for it
    gguf_file: str | None = setting(instead_of=("path", "random"))
    dtype: str = setting(options=DTYPES)
    device: str = MISSING
    batch_tokens: int = setting(above=0, same_run=True)

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        problems = LLMConfig.check(self, config) + shadowed(self, "llm")
        for field in ("adapter", "random", "gguf_file") if self.family == ENCODER else ():
            if getattr(self, field) is not None:
                problems.append(f"llm.{field} is of causal language models: set it to null with llm.family={ENCODER}")
        return problems


@dataclass
class Timeouts:
    """Seconds."""

    connect: float = setting(above=0)
    read: float = setting(above=0)


@dataclass
class Retries:
    """max_attempts: of one call, the first included; max_wait: seconds, also the longest Retry-After obeyed."""

    max_attempts: int = setting(above=0)
    max_wait: float = setting(above=0)


@dataclass
class Price:
    """US dollars for a million tokens; null: unknown, and then no cost is computed."""

    input: float | None = setting(at_least=0)
    output: float | None = setting(at_least=0)


@dataclass
class EndpointLLMConfig(LLMConfig):
    """A server that speaks the OpenAI protocol. api_key_env names an environment variable, never the key itself."""

    base_url: str | None = setting(same_run=True)  # who answers is `model`
    api: str = setting(options=("chat", "completions"))
    api_key_env: str | None = setting(same_run=True)
    model: str | None = MISSING
    score: str = setting(options=("none", "vllm_prompt_logprobs", "echo"))
    tokenizer: str | None = setting(same_run=True)
    max_tokens_field: str = setting(options=("max_tokens", "max_completion_tokens"), same_run=True)
    concurrency: int = setting(at_least=1, at_most=64, same_run=True)
    rpm: int | None = setting(above=0, same_run=True)
    tpm: int | None = setting(above=0, same_run=True)
    timeout: Timeouts = setting(same_run=True)
    retry: Retries = setting(same_run=True)
    price: Price = setting(same_run=True)

    def check(self, config: Any) -> list[str]:
        """What its fields say together, and what no range can say of them."""
        problems = LLMConfig.check(self, config) + _check_address(self.base_url)
        if self.model is None:
            problems.append("llm.model: name the model that the server serves, llm.model=NAME")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            problems.append("llm.api_key_env must be the name of an environment variable, not the key itself")
        if self.score != "none" and self.api != "completions":
            problems.append(f"llm.score={self.score} needs llm.api=completions: chat cannot score given text")
        return problems


@dataclass
class ReplayLLMConfig(LLMConfig):
    """Recorded answers: a JSONL file that maps an id or a prompt to its answer."""

    path: str | None = setting(same_run=True)  # its fingerprint stands for it
    model: str = MISSING

    def check(self, config: Any) -> list[str]:
        """What its fields say together."""
        absent = ["llm.path: name the file of recorded answers, llm.path=FILE.jsonl"] if self.path is None else []
        return LLMConfig.check(self, config) + absent


def _check_address(url: str | None) -> list[str]:
    if url is None:
        return ["llm.base_url: give the address of the server, llm.base_url=http://HOST:PORT/v1"]
    if not re.match(r"https?://[^/]", url):
        return [f"llm.base_url must begin with http:// or https://, not {mask_text(url.partition('?')[0])}"]
    if "@" in urlsplit(url).netloc:
        return ["llm.base_url holds a name or password, which would be written down: use llm.api_key_env"]
    if set("?#;") & set(url):  # what follows would also come before the path of each call
        return ["llm.base_url is an address alone, without ?, # and ; : a key is named by llm.api_key_env"]
    return []
