"""The vocabulary of randomly initialised language models: bytes and pairs of letters, of nobody's data."""

from __future__ import annotations

import itertools
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACE = "Ġ"  # as byte-level tokenizers write it


def byte_pieces() -> list[str]:
    """Special tokens, the 256 bytes, and what the merges make: pairs of letters, and a space before a letter."""
    from tokenizers import pre_tokenizers

    return [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in _merges())]


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE that begins a text with `<s>`, with ChatML as its chat template. Any text survives the round
    trip.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(byte_pieces())}
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _merges() -> list[tuple[str, str]]:
    letters = string.ascii_lowercase
    return [*((SPACE, letter) for letter in string.ascii_letters), *itertools.product(letters, letters)]
