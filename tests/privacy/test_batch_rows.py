"""Taking the records of a batch, whatever it is made of."""

import numpy as np
import pytest
import torch

from privlm.errors import UsageError
from privlm.privacy.batch_rows import refuse_without_rows, take, take_padded


def test_every_kind_of_rows_is_taken_and_what_all_share_stays() -> None:
    batch = {
        "x": torch.arange(6).view(3, 2),
        "ids": np.array([7, 8, 9]),
        "texts": ["a", "b", "c"],
        "pair": (torch.tensor([1, 2, 3]), {"more": torch.tensor([4, 5, 6])}),
        "positions": torch.arange(2)[None],
        "temperature": torch.tensor(2.0),
    }
    taken = take(batch, [2, 0, 2], 3)
    assert taken["x"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert taken["ids"].tolist() == [9, 7, 9]
    assert taken["texts"] == ["c", "a", "c"]
    assert taken["pair"][0].tolist() == [3, 1, 3]
    assert taken["pair"][1]["more"].tolist() == [6, 4, 6]
    assert taken["positions"].shape == (1, 2)
    assert taken["temperature"] == 2


def test_a_batch_of_which_no_row_is_seen_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a batch of type object shows no rows of its 3 records"):
        refuse_without_rows(object(), 3)
    refuse_without_rows((torch.zeros(3, 2), None), 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_cut_to_the_longest_that_is_taken(side: str) -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    mask = mask.flip(1) if side == "left" else mask
    batch = {"input_ids": mask * torch.tensor([[1], [2], [3]]), "attention_mask": mask, "labels": torch.arange(3)}
    taken = take_padded(batch, [1, 2], 3)
    assert taken["input_ids"].shape == (2, 2)
    assert taken["input_ids"].sum() == 7
    assert taken["labels"].tolist() == [1, 2]
    assert take_padded(batch, [0, 2], 3)["input_ids"].shape == (2, 4)


def test_padding_of_a_fixed_length_and_labels_are_never_cut() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
    assert take_padded({"x": mask, "attention_mask": mask}, [1], 2)["x"].shape == (1, 4)
    tight = mask[:, :2]
    predicted = {"x": tight, "attention_mask": tight, "labels": torch.tensor([[5, 6], [7, 8]])}
    assert take_padded(predicted, [1], 2)["x"].shape == (1, 2)
    masked = predicted | {"labels": torch.tensor([[5, 6], [7, -100]])}
    assert take_padded(masked, [1], 2)["x"].shape == (1, 1)
