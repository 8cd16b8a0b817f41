"""Predicting the next token: a loss per example, over the tokens that the data names.

Shapes: B examples, T positions, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from privlm.data.causal_lm import NOT_PREDICTED
from privlm.errors import UsageError
from privlm.training.objective import Batch, ExampleRandom, Objective, PerExample


class NextToken(Objective):
    """The objective for batches {input_ids, attention_mask, position_ids, labels, token_weights?} of a CausalSplit.

    only_predicted: the model computes logits of those positions alone that predict something in a row of the batch, as
        transformers' models can. Which ones depends on all rows, so that it is not for private training.
    """

    def __init__(self, *, only_predicted: bool = False) -> None:
        self.only_predicted = only_predicted

    def losses(self, model: nn.Module, batch: Batch, rng: ExampleRandom) -> PerExample:
        """Mean cross entropy of the labelled tokens of each example, float32 [B]; draws nothing from `rng`.

        Where tokens have weights, the mean is weighted by the example's own: an example is as important as another
        however long or heavy it is. The model returns logits [B, T, V], or an output that holds them.
        """
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        follows_BT = batch["attention_mask"][:, :-1].bool()  # a first token behind padding is predicted from nothing
        labels_BT = batch["labels"][:, 1:].masked_fill(~follows_BT, NOT_PREDICTED)
        weights_BT = batch["token_weights"][:, 1:] if "token_weights" in batch else None
        if self.only_predicted and _keeps_logits(model):
            predict_t = (labels_BT != NOT_PREDICTED).any(0).nonzero().flatten()
            output = model(**_understood(model, inputs), logits_to_keep=predict_t)
            weights_Bt = None if weights_BT is None else weights_BT[:, predict_t]
            return PerExample(_mean_losses(output.logits, labels_BT[:, predict_t], weights_Bt))
        output = model(**_understood(model, inputs))
        logits_BTV = getattr(output, "logits", output)
        logits_BTV = logits_BTV[:, -batch["input_ids"].shape[1] :]  # embedded virtual tokens have some, too
        return PerExample(_mean_losses(logits_BTV[:, :-1], labels_BT, weights_BT))


def _mean_losses(logits_BTV: Tensor, labels_BT: Tensor, weights_BT: Tensor | None) -> Tensor:
    """[B]. All of the same tokens: logits_BTV where they are predicted, labels_BT and weights_BT what and how much."""
    loss_BT = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=NOT_PREDICTED, reduction="none"
    ).view_as(labels_BT)
    counts_BT = (labels_BT != NOT_PREDICTED).float()
    if weights_BT is not None:
        counts_BT = counts_BT * weights_BT
    return (loss_BT * counts_BT).sum(1) / counts_BT.sum(1)


def _keeps_logits(model: nn.Module) -> bool:
    """Whether its forward function can be told of which positions logits are wanted."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:  # positions are counted from the virtual tokens on
            return False
        model = model.get_base_model()
    return isinstance(model, PreTrainedModel) and "logits_to_keep" in inspect.signature(model.forward).parameters


def _understood(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """A transformers model gets what its forward function names (some know no positions), and keeps no cache.

    Raises UsageError for padding on the left behind virtual tokens.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel):
        return inputs
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        inputs = _counted_by_columns(inputs)
    named = inspect.signature(base.forward).parameters
    return {name: value for name, value in {**inputs, "use_cache": False}.items() if name in named}


def _counted_by_columns(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Virtual tokens stand in the columns before a row, and peft counts positions by columns from there on."""
    mask_BT = inputs["attention_mask"]
    if not bool(mask_BT[:, 0].all()):
        raise UsageError(
            "adapter=prefix and adapter=prompt count positions by columns, so that padding on the left would move a "
            "text away from its virtual tokens: pad on the right"
        )
    return {name: value for name, value in inputs.items() if name != "position_ids"}
