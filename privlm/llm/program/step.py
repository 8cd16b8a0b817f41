"""One call of a model: a template, the variables that it may see, and how its output is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from privlm.errors import UsageError
from privlm.llm.program.parsers import Parser, stripped
from privlm.llm.types import GenerateRequest, Message, Sampling, ScoreRequest

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Step:
    """A generation, or a score if it has a `continuation`, or a choice if it has `options`.

    template: jinja2 text of the prompt (of the context, for a score or a choice). It sees `inputs` and nothing else.
    continuation: jinja2 text whose log-likelihood after the context is asked for.
    options: texts of which the most likely after the context is chosen; `by` says by which mean.
    parse, validate: make a value of the output; `validate` returns what is wrong with it, or None.
    reasks: how often an output that cannot be read is asked for again, with the error in the prompt.
    chat: the prompt is a user's turn (after a `system` one, if given), not raw text.
    logprobs: also return the log-probabilities of the generated tokens.
    """

    name: str
    template: str
    inputs: tuple[str, ...]
    continuation: str | None = None
    options: tuple[str, ...] = ()
    by: Literal["avg_nll", "sum_nll"] = "avg_nll"
    parse: Parser = stripped
    validate: Callable[[Any], str | None] | None = None
    reasks: int = 0
    max_tokens: int = 64
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for a template that reads what is not declared, naming step and variable."""
        from jinja2 import meta

        for source in filter(None, (self.template, self.continuation)):
            for variable in sorted(meta.find_undeclared_variables(_environment().parse(source))):
                if variable not in self.inputs:
                    raise self._undeclared(variable)

    @property
    def kind(self) -> Literal["generate", "score", "choose"]:
        if self.continuation is not None:
            return "score"
        return "choose" if self.options else "generate"

    def prompt(self, variables: Mapping[str, Any]) -> Prompt:
        """What a generation is asked. Raises UsageError for an undeclared or a missing variable."""
        text = self._render(self._template, variables)
        if not self.chat:
            return text
        return (*self._system_turn(), Message("user", text))

    def generate_request(self, prompt: Prompt, item: str) -> GenerateRequest:
        sampling = Sampling(self.max_tokens, temperature=self.temperature, stop=self.stop)
        return GenerateRequest(prompt, sampling, logprobs=self.logprobs, item=item)

    def score_requests(self, variables: Mapping[str, Any]) -> list[ScoreRequest]:
        """One request of a score, one for each option of a choice. A blank at the border belongs to the latter part."""
        context = self._render(self._template, variables)
        if self._continuation is not None:
            return [ScoreRequest(context, self._render(self._continuation, variables))]
        return [ScoreRequest(context, option) for option in self.options]

    def reask(self, prompt: Prompt, output: str, error: str) -> Prompt:
        """The prompt that shows the model its output and why it could not be read."""
        complaint = f"This could not be read: {error}. Answer again."
        if isinstance(prompt, str):
            return f"{prompt}{output}\n{complaint}\n"
        return (*prompt, Message("assistant", output), Message("user", complaint))

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.template)

    @cached_property
    def _continuation(self) -> Template | None:
        return None if self.continuation is None else _environment().from_string(self.continuation)

    def _system_turn(self) -> tuple[Message, ...]:
        return () if self.system is None else (Message("system", self.system),)

    def _render(self, template: Template, variables: Mapping[str, Any]) -> str:
        for variable in variables:
            if variable not in self.inputs:
                raise self._undeclared(variable)
        for variable in self.inputs:
            if variable not in variables:
                raise UsageError(f"step '{self.name}': no value for its input '{variable}'")
        return template.render(variables)

    def _undeclared(self, variable: str) -> UsageError:
        declared = ", ".join(self.inputs) or "none"
        return UsageError(f"step '{self.name}': variable '{variable}' is not declared (inputs: {declared})")


def _environment() -> Environment:
    """Without jinja's globals: a template has its variables and nothing else. Texts put in stay as they are."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    environment.globals.clear()
    return environment
