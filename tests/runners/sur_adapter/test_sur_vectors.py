"""Vectors of prompts: of language models, hashed words and files; what is cached, resumed and refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from privlm.runners.sur_adapter.llm_features import hashed, of_llm, precomputed
from privlm.runners.sur_adapter.vector_cache import INDEX, VectorCache, key_of
from privlm.runners.sur_adapter.vectors import Vectors, checked

from privlm import files
from privlm.errors import UsageError
from privlm.llm import LanguageModel
from privlm.llm.local.backend import LocalBackend
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm

PROMPTS = ["pair navy disc", "a much longer prompt of a ruby box and of nothing else at all", "ink", "lone plum cone"]
ABOUT = {"llm": "somebody", "layer": 1}


@pytest.fixture(scope="module")
def asked() -> LanguageModel:
    shape = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 128,
    }  # fmt: skip
    loaded = SimpleNamespace(model=random_causal_lm(shape), tokenizer=byte_tokenizer(), digest="d")
    return LanguageModel(LocalBackend.of(loaded))


def settings(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"layer": -1, "pooling": "last", "norm": "raw", "dtype": "float32"} | changes)


class Giver:
    """Counts what it is asked; interrupts after so many prompts."""

    def __init__(self, width: int = 4, until: int | None = None) -> None:
        self.width, self.until = width, until
        self.asked: list[str] = []

    def __call__(self, texts):
        if self.until is not None and len(self.asked) + len(texts) > self.until:
            raise KeyboardInterrupt
        self.asked += texts
        return [torch.full((1, self.width), float(len(text))) for text in texts]


# --- language models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean", "tokens"])
@pytest.mark.parametrize("layer", [1, -2])
def test_a_vector_is_the_same_in_any_company(asked, layer, pooling):
    _, give = of_llm(asked, settings(layer=layer, pooling=pooling))
    together = give(PROMPTS)
    for prompt, found in zip(PROMPTS, together, strict=True):
        torch.testing.assert_close(found, give([prompt])[0], atol=1e-4, rtol=0)
    assert all(len(rows) == 1 for rows in together) == (pooling != "tokens")


def test_who_gave_a_vector_and_how_is_told(asked):
    about, _ = of_llm(asked, settings(norm="final"))
    assert about == {
        "llm": asked.backend.model, "layer": -1, "pooling": "last", "norm": "final", "dtype": "float32",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 9}, r"task.features: layer 9: the model has layers 0 \(the embedding\) to 3"),
        ({"pooling": "max"}, "task.features: pooling must be one of last, mean, tokens, not max"),
    ],
)
def test_what_the_model_does_not_have_is_refused(asked, changes, message):
    """D9: with a sentence, not with another error."""
    _, give = of_llm(asked, settings(**changes))
    with pytest.raises(UsageError, match=message):
        give(PROMPTS)


def test_hashed_words_are_the_same_each_time_and_tell_prompts_apart():
    rows = hashed([*PROMPTS, PROMPTS[0], ""], 64)
    assert torch.equal(rows[0], rows[4])
    assert not torch.allclose(rows[0], rows[3])
    assert all(row.shape == (1, 64) and abs(float(row.norm()) - 1) < 1e-5 for row in rows)


# --- the cache ------------------------------------------------------------------------------------------------------


def test_what_was_computed_is_not_computed_again(tmp_path):
    giver = Giver()
    found = VectorCache(tmp_path, ABOUT).fill([*PROMPTS, PROMPTS[0]], giver)
    assert sorted(giver.asked) == sorted(PROMPTS)
    again = VectorCache(tmp_path, ABOUT).fill([*PROMPTS, "new"], giver)
    assert giver.asked[4:] == ["new"]
    assert all(torch.equal(again[prompt], found[prompt]) for prompt in PROMPTS)
    assert float(again["new"][0, 0]) == 3.0


def test_an_interrupted_extraction_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver(until=2), chunk=1)
    giver = Giver()
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, giver, chunk=1)
    assert giver.asked == PROMPTS[2:]


def test_a_half_written_shard_is_computed_again(tmp_path):
    VectorCache(tmp_path, ABOUT).fill(PROMPTS[:2], Giver())
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver())
    shard = tmp_path / files.read_json_lines(tmp_path / INDEX)[1]["shard"]
    shard.write_bytes(shard.read_bytes()[:-5])
    giver = Giver()
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, giver)
    assert giver.asked == PROMPTS[2:]


def test_a_torn_line_of_the_index_is_as_if_it_were_not_there(tmp_path):
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver())
    index = tmp_path / INDEX
    index.write_bytes(index.read_bytes()[:-20])
    giver = Giver()
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, giver)
    assert giver.asked == PROMPTS
    assert len(files.read_json_lines(index)) == 1


@pytest.mark.parametrize("changed", [{"llm": "another"}, {"layer": 2}, {"pooling": "mean"}])
def test_the_key_holds_all_that_decides_a_vector(changed):
    assert key_of(ABOUT, "a") != key_of(ABOUT | changed, "a")
    assert key_of(ABOUT, "a") != key_of(ABOUT, "b")


def test_a_folder_of_another_model_is_refused_by_both_names(tmp_path):
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver())
    with pytest.raises(UsageError, match=r"another giver \(llm=somebody, not another\)"):
        VectorCache(tmp_path, ABOUT | {"llm": "another"})


def test_vectors_of_another_width_are_refused(tmp_path):
    VectorCache(tmp_path, ABOUT).fill(PROMPTS[:2], Giver())
    with pytest.raises(UsageError, match=r"vectors have widths 4 and 5 \(prompt 3\)"):
        VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver(width=5))


def test_what_is_no_number_is_refused_and_not_kept(tmp_path):
    def give(texts):
        return [torch.full((1, 4), float("nan")) for _ in texts]

    with pytest.raises(UsageError, match="the vector of prompt 1 holds NaN or infinity"):
        VectorCache(tmp_path, ABOUT).fill(PROMPTS, give)
    assert not (tmp_path / INDEX).exists()


# --- files ----------------------------------------------------------------------------------------------------------


def dictionary(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "vectors.pt")
    return tmp_path / "vectors.pt"


def test_a_dictionary_of_the_released_code_is_read(tmp_path):
    found = precomputed(dictionary(tmp_path, {prompt: torch.randn(1, 1, 6) for prompt in PROMPTS}), PROMPTS)
    assert found.width == 6
    assert found.batch(PROMPTS[:2], 5)[0].shape == (2, 1, 6)


def test_a_folder_that_a_run_has_filled_is_read(tmp_path):
    VectorCache(tmp_path, ABOUT).fill(PROMPTS, Giver())
    found = precomputed(tmp_path, PROMPTS[1:])
    assert found.about == ABOUT
    assert float(found.rows["ink"][0, 0]) == 3.0


def test_missing_prompts_are_counted_before_anything_is_trained(tmp_path):
    """D7. The prompts are named by their places: their texts may be private."""
    path = dictionary(tmp_path, {PROMPTS[0]: torch.randn(6)})
    with pytest.raises(UsageError, match=r"no vector of 4 of 5 narrative prompts \(rows 2, 3, 4, ...\)"):
        precomputed(path, [*PROMPTS, "and another"])


class Pickled:
    """What torch refuses to make of a file."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Pickled(), r"cannot be read \(UnpicklingError"),
        ([1, 2], "holds no dictionary of prompts"),
        ({1: torch.ones(3)}, "holds no dictionary of prompts"),
        ({"a": "text"}, "entry 1 is no vector"),
        ({}, "holds no vectors"),
        ({"a": torch.ones(3), "b": torch.ones(4)}, "widths 3 and 4"),
        ({"a": torch.tensor([1.0, float("inf")])}, "holds NaN or infinity"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        precomputed(dictionary(tmp_path, content), ["a"])


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no about\.json"):
        precomputed(tmp_path, PROMPTS)


def test_rows_of_tokens_are_cut_and_filled_up_to_the_positions():
    rows = checked({"a": torch.ones(2, 3), "b": 2 * torch.ones(7, 3)}, "a test")
    vectors, mask = Vectors(rows, {}).batch(["a", "b"], 4)
    assert vectors.shape == (2, 4, 3)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert not vectors[0, 2:].any()
