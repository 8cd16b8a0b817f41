"""How a question becomes a prompt: one builder for training and for evaluation.

llm_adapters_verbatim: the released layout, whose lines after the first are indented by 16 blanks (of a question of
several lines only the first). alpaca: the same without indentation. chat: the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privlm.data.instructions import TEMPLATES, Instruction
from privlm.errors import UsageError

from .questions import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INDENT = " " * 16
RESPONSE = "### Response:"
OPENING = "Below is an instruction that describes a task"
REQUEST = "rite a response that appropriately completes the request."


@dataclass(frozen=True)
class Prompts:
    """mismatch: none, or upstream: evaluation lays prompts out as the released script does, which is not how they were
    laid out in training.
    """

    style: str
    mismatch: str
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if self.style == "chat" and self.tokenizer.chat_template is None:
            raise UsageError(
                "task.prompt_style=chat: the model's tokenizer has no chat template; choose "
                "task.prompt_style=alpaca or llm_adapters_verbatim"
            )

    def training(self, question: Question) -> tuple[str, str]:
        """The prompt, and the response that follows it without a gap."""
        response = question.output if self.style == "llm_adapters_verbatim" else question.output.strip()
        return STYLES[self.style](question, self.tokenizer), response

    def evaluation(self, question: Question) -> str:
        """What the model is asked to continue."""
        if self.mismatch == "upstream":
            return _released_evaluation(question)
        return STYLES[self.style](question, self.tokenizer)


def _verbatim(question: Question, tokenizer: PreTrainedTokenizerBase) -> str:
    if question.input:
        opening = f"{OPENING}, paired with an input that provides further context. W{REQUEST} \n"
        blocks = [("Instruction", question.instruction), ("Input", question.input)]
    else:
        opening, blocks = f"{OPENING}. W{REQUEST}  \n", [("Instruction", question.instruction)]
    middle = "".join(f"{INDENT}### {name}:\n{INDENT}{text}\n{INDENT}\n" for name, text in blocks)
    return f"{opening}\n{middle}{INDENT}{RESPONSE}\n{INDENT}"


def _released_evaluation(question: Question) -> str:
    """One blank after the first line instead of two, an empty line instead of blanks, and never an input."""
    instruction = f"{INDENT}### Instruction:\n{INDENT}{question.instruction}\n"
    return f"{OPENING}. W{REQUEST} \n\n{instruction}\n{INDENT}{RESPONSE}\n{INDENT}"


def _alpaca(question: Question, tokenizer: PreTrainedTokenizerBase) -> str:
    return TEMPLATES["alpaca"].prompt(Instruction(question.instruction.strip(), question.input, ""))


def _chat(question: Question, tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": "user", "content": question.text.strip()}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


STYLES: dict[str, Callable[[Question, PreTrainedTokenizerBase], str]] = {
    "llm_adapters_verbatim": _verbatim,
    "alpaca": _alpaca,
    "chat": _chat,
}
"""task.prompt_style -> the prompt of a question."""


def scored_text(generated: str) -> str:
    """What is scored of a continuation: as released, up to the next "### Response:", without blanks around it."""
    return generated.split(RESPONSE, maxsplit=1)[0].strip()
