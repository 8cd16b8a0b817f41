"""Prompts letter by letter, and the rows of tokens that they become."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PrefixTuningConfig
from privlm.runners.llm_adapters.answering import Reply
from privlm.runners.llm_adapters.encoding import encode
from privlm.runners.llm_adapters.prompts import Prompts, scored_text
from privlm.runners.llm_adapters.questions import Question

from privlm.data.causal_lm import NOT_PREDICTED
from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer
from privlm.training.prompted import padding_side

S = " " * 16
PLAIN = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)
TRAINED = f"{PLAIN}  \n\n{S}### Instruction:\n{S}1 + 1?\nand so\n{S}\n{S}### Response:\n{S}"


def question(text: str = "1 + 1?\nand so", context: str = "", output: str = "\nA: 2.") -> Question:
    return Question(text, context, output, "2", (), True, "file row 1")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def test_the_released_prompt_letter_by_letter(tokenizer: Any) -> None:
    prompts = Prompts("llm_adapters_verbatim", "none", tokenizer)
    assert prompts.training(question()) == (TRAINED, "\nA: 2.")
    assert prompts.evaluation(question()) == TRAINED
    with_input = f"{PAIRED} \n\n{S}### Instruction:\n{S}1\n{S}\n{S}### Input:\n{S}2\n{S}\n{S}### Response:\n{S}"
    assert prompts.evaluation(question("1", "2")) == with_input


def test_the_released_evaluation_differs_from_training_and_never_passes_the_input(tokenizer: Any) -> None:
    prompts = Prompts("llm_adapters_verbatim", "upstream", tokenizer)
    assert prompts.training(question())[0] == TRAINED
    evaluated = f"{PLAIN} \n\n{S}### Instruction:\n{S}1\n\n{S}### Response:\n{S}"
    assert prompts.evaluation(question("1")) == prompts.evaluation(question("1", "2")) == evaluated


def test_the_alpaca_prompt_letter_by_letter(tokenizer: Any) -> None:
    prompts = Prompts("alpaca", "none", tokenizer)
    text = f"{PLAIN}\n\n### Instruction:\n1 + 1?\nand so\n\n### Response:\n"
    assert prompts.training(question()) == (text, "A: 2.")
    assert prompts.evaluation(question()) == text
    paired = f"{PAIRED}\n\n### Instruction:\n1\n\n### Input:\n2\n\n### Response:\n"
    assert prompts.evaluation(question("1", "2")) == paired


def test_chat_needs_a_template_and_uses_it(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"task.prompt_style=chat: the model's tokenizer has no chat template"):
        Prompts("chat", "none", _Chat(None))  # type: ignore[arg-type]
    prompts = Prompts("chat", "none", _Chat("there"))  # type: ignore[arg-type]
    assert prompts.training(question("1", "2")) == ("<user>1\n2<assistant>", "A: 2.")


class _Chat:
    """A tokenizer of which only the chat template matters."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: Any) -> str:
        assert settings == {"tokenize": False, "add_generation_prompt": True}
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def test_what_is_scored_ends_where_the_model_asks_itself_on() -> None:
    assert scored_text(" 5.\n\n### Response:\n6") == "5."
    assert Reply.of("\n### Response: 6", "ok") == Reply("", "empty")
    assert Reply.of("so 3", "length") == Reply("so 3", "length")


# --- rows of tokens ---------------------------------------------------------------------------------------


def encoded(tokenizer: Any, *questions: Question, length: int = 400, on_inputs: bool = True) -> Any:
    prompts = Prompts("alpaca", "none", tokenizer)
    return encode(questions, prompts, train_on_inputs=on_inputs, max_length=length, side=padding_side(None))


def test_the_loss_is_of_the_whole_text_or_of_the_answer_alone(tokenizer: Any) -> None:
    whole, answer = (encoded(tokenizer, question(), on_inputs=on_inputs) for on_inputs in (True, False))
    text = tokenizer.decode(whole.input_ids[0][:-1])
    assert text.endswith("### Response:\nA: 2.")
    assert whole.input_ids[0][-1] == tokenizer.eos_token_id
    assert np.array_equal(whole.labels[0], whole.input_ids[0])
    learnt = answer.labels[0][answer.labels[0] != NOT_PREDICTED]
    assert tokenizer.decode(learnt[:-1]) == "A: 2."
    assert learnt[-1] == tokenizer.eos_token_id


def test_batches_are_padded_on_the_left_to_a_multiple_of_eight(tokenizer: Any) -> None:
    split = encoded(tokenizer, question(), question("a longer question?"))
    batch = split.batch([0, 1])
    longest = max(map(len, split.input_ids))
    assert batch["input_ids"].shape == (2, -(-longest // 8) * 8)
    for row, ids in enumerate(split.input_ids):
        assert batch["input_ids"][row, -len(ids) :].tolist() == ids.tolist()
        assert batch["attention_mask"][row].sum() == len(ids)
        assert batch["position_ids"][row, -1] == len(ids) - 1
        assert (batch["labels"][row, : -len(ids)] == NOT_PREDICTED).all()


def test_virtual_tokens_stand_beside_the_text() -> None:
    adapters = {"left": LoraConfig(), "right": PrefixTuningConfig(num_virtual_tokens=2)}
    for side, adapter in adapters.items():
        assert padding_side(SimpleNamespace(active_peft_config=adapter)) == side


def test_long_rows_are_cut_and_counted_and_a_row_without_an_answer_left_is_skipped(tokenizer: Any) -> None:
    rows = [question(), question("long " * 300), question("x" * 1_000_000)]
    split = encoded(tokenizer, *rows, on_inputs=False)
    assert (len(split), split.num_truncated, split.num_skipped) == (1, 2, 2)
    whole = encoded(tokenizer, *rows)
    assert (len(whole), whole.num_truncated, whole.num_skipped) == (3, 2, 0)
    assert len(whole.input_ids[1]) == 400
    assert tokenizer.eos_token_id not in whole.input_ids[1]


def test_a_token_across_the_border_belongs_to_the_prompt() -> None:
    split = encoded(_Merging(), question("1", output="a2"), on_inputs=False)
    assert split.input_ids[0].tolist()[-3:] == [1, 2, 0]
    assert split.labels[0].tolist()[-3:] == [NOT_PREDICTED, 2, 0]


def test_a_tokenizer_without_end_and_padding_tokens_will_do() -> None:
    class Bare(_Merging):
        eos_token_id = None  # type: ignore[assignment]

    split = encoded(Bare(), question("1", output="a2"))
    assert (split.input_ids[0].tolist(), split.pad_token_id) == ([1, 2], 0)


class _Merging:
    """Makes one token of the prompt and the first letter of the answer, and another of the last letter."""

    is_fast = True
    chat_template = None
    pad_token_id = None
    eos_token_id = 0

    def __call__(self, text: str, **settings: Any) -> Any:
        if text == "a":
            return {"input_ids": [5]}
        border = len(text) - 1
        return {"input_ids": [1, 2], "offset_mapping": [(0, border), (border, border + 1)]}
