"""Prompts with their responses as rows of tokens: one text each, cut at the model's length, padded to a common one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from privlm.data.causal_lm import CausalSplit, TokenRow, causal_split, padding_id
from privlm.errors import UsageError
from privlm.llm.local.scoring import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MULTIPLE = 8  # tokens, of the length of a padded batch


def encode_prompted(
    pairs: Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on_inputs: bool,
    max_length: int,
    side: str,
) -> CausalSplit:
    """pairs: (prompt, response); the response follows the prompt without a gap, and ends with the end-of-text token.

    train_on_inputs: the loss is of the whole text, of the response alone otherwise. side: of the padding.

    Raises UsageError where no row has a token to predict.
    """
    start = Encoder(tokenizer, None).start
    rows = [_row(tokenizer, start, *pair, train_on_inputs) for pair in pairs]
    return causal_split(
        rows, max_length=max_length, pad_token_id=padding_id(tokenizer), side=side, multiple_of=MULTIPLE
    )


def padding_side(model: Any) -> str:
    """left, as released; right where an adapter puts virtual tokens before the text, which padding must not part from
    it. A row means the same on either side.
    """
    adapter = getattr(model, "active_peft_config", None)
    return "right" if getattr(adapter, "is_prompt_learning", False) else "left"


def _row(
    tokenizer: PreTrainedTokenizerBase, start: list[int], prompt: str, response: str, train_on_inputs: bool
) -> TokenRow:
    """Prompt and response are tokenised together: a token across their border belongs to the prompt. The text ends with
    the end-of-text token, where the model has one.
    """
    if not tokenizer.is_fast:
        raise UsageError("model: its tokenizer does not tell where its tokens lie (a fast one does)")
    whole = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=True)
    ids, begins = whole["input_ids"], [begin for begin, _ in whole["offset_mapping"]]
    border = next((place for place, begin in enumerate(begins) if begin >= len(prompt)), len(begins))
    before = [] if ids[: len(start)] == start else start
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return TokenRow([*before, *ids, *end], prompt_length=0 if train_on_inputs else len(before) + border)
