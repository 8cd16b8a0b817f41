"""fit: one stage from data to a priced, saved model that was read back; what goes wrong on the way is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.regression import Points, Squares, settings
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from privlm import reload_proof
from privlm.adapters.load import load_encoder_classifier
from privlm.adapters.schema import AdapterConfig
from privlm.config import defaults
from privlm.data.causal_lm import TokenRow, causal_split
from privlm.data.encoding import tokenize
from privlm.data.text_classification import Split
from privlm.errors import PrivLMError, UsageError
from privlm.fit import fit, load_trained
from privlm.job import Stage
from privlm.models import saving
from privlm.models.loaded import Loaded
from privlm.models.schema import ModelConfig
from privlm.privacy.schema import PrivacyConfig
from privlm.rundir import MODEL, TRAINING
from privlm.training.classification import Classification
from privlm.training.next_token import NextToken
from privlm.training.trainer import Evaluation, Trainer

CONFIG = settings(steps=4, epochs=None, checkpoint_every=2)
PRIVACY = defaults(
    PrivacyConfig, "privacy", "dp_sgd", epsilon=None, noise_multiplier=1.0, delta=1e-3, rng="reproducible"
)


def linear() -> Loaded:
    return Loaded.of(lambda: nn.Linear(3, 1), made_of="linear")


def fitted(folder: Path, loaded: Loaded, config: Any = CONFIG, **options: Any) -> Any:
    """The stage `train` of a library user in `folder`."""
    objective, data = options.pop("objective", None) or Squares(), options.pop("data", None) or Points()
    with Stage.at(folder, trainer=config, privacy=options.pop("privacy", None)) as stage:
        outcome = fit(stage, loaded, objective, data, **options)
    return SimpleNamespace(outcome=outcome, needed=stage.needed, model=loaded.model, folder=stage.folder / MODEL)


def weights(model: nn.Module) -> list[float]:
    return torch.cat([value.flatten() for value in model.state_dict().values()]).tolist()


# --- the stage ------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    first, second = fitted(tmp_path, linear()), fitted(tmp_path, linear())
    assert (first.needed, second.needed) == (True, False)
    assert weights(second.model) == weights(first.model) != weights(linear().model)
    assert second.outcome == first.outcome


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    fitted(tmp_path, linear())
    with pytest.raises(UsageError, match="holds a stage of other settings"):
        fitted(tmp_path, linear(), replace(CONFIG, learning_rate=0.01))


def test_a_stage_in_memory_trains_alike_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = linear()
    with Stage.in_memory(trainer=CONFIG, privacy=PRIVACY) as stage:
        fit(stage, loaded, Squares(), Points())
    assert list(tmp_path.iterdir()) == []
    assert weights(loaded.model) == weights(fitted(tmp_path / "kept", linear(), privacy=PRIVACY).model)


def test_the_price_is_in_privacy_json_and_the_rows(tmp_path: Path) -> None:
    fitted(tmp_path, linear(), privacy=PRIVACY)
    privacy, result = (json.loads((tmp_path / name).read_text()) for name in ("privacy.json", "result.json"))
    assert (privacy["steps"], privacy["guarantee"], privacy["flags"]) == (4, True, ["seeded_noise"])
    assert {row["metric"]: row["value"] for row in result["rows"]}["epsilon"] == privacy["epsilon"] > 0


def test_a_finished_stage_tells_its_price_again_from_a_whole_ledger_alone(tmp_path: Path) -> None:
    fitted(tmp_path, linear(), privacy=PRIVACY)
    told = json.loads((tmp_path / "privacy.json").read_text())
    (tmp_path / "privacy.json").unlink()
    fitted(tmp_path, linear(), privacy=PRIVACY)
    assert json.loads((tmp_path / "privacy.json").read_text()) == told
    ledger = tmp_path / "privacy_ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PrivLMError, match=r"holds 3 releases, and result\.json has recorded 4"):
        fitted(tmp_path, linear(), privacy=PRIVACY)


def test_private_stages_share_one_budget_as_they_are_told_to(tmp_path: Path) -> None:
    with Stage.at(tmp_path, trainer=CONFIG, privacy=replace(PRIVACY, epsilon=2.0, noise_multiplier=None)) as stage:
        spent = []
        fit(stage, linear(), Squares(), Points(), share=0.5)
        spent.append(stage.job.ledger.epsilon(1e-3).epsilon)
        with stage.job.stage("second") as second:
            fit(second, linear(), Squares(), Points())
        spent.append(stage.job.ledger.epsilon(1e-3).epsilon)
        with stage.job.stage("third") as third, pytest.raises(UsageError, match="earlier releases have spent"):
            fit(third, linear(), Squares(), Points())
    assert 0.9 < spent[0] <= 1.0
    assert 1.9 < spent[1] <= 2.0


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"trainer\.batch_size=51 is larger than the training set"):
        fitted(tmp_path, linear(), replace(CONFIG, batch_size=51), privacy=PRIVACY)
    assert not (tmp_path / "privacy_ledger.jsonl").exists()


def test_a_public_stage_may_have_a_training_of_its_own(tmp_path: Path) -> None:
    own = replace(CONFIG, learning_rate=10 * CONFIG.learning_rate, steps=2)
    of_its_own = fitted(tmp_path / "own", linear(), public=True, trainer=own)
    of_the_run = fitted(tmp_path / "run", linear(), config=own)
    plain = fitted(tmp_path / "plain", linear())
    assert (of_its_own.outcome.steps, plain.outcome.steps) == (2, 4)
    assert weights(of_its_own.model) == weights(of_the_run.model) != weights(plain.model)


def test_training_that_moves_nothing_is_told(tmp_path: Path) -> None:
    fitted(tmp_path, linear(), replace(CONFIG, learning_rate=1e-30))
    proof = reload_proof.Proof(2, reload_proof.distance(linear().model, linear().model))
    assert str(proof) == "read back equal: 2 parameters and buffers; nothing moved"


# --- planted faults -------------------------------------------------------------------------------------------------


def classifier() -> Loaded:
    """A tiny encoder with LoRA and a head."""
    model = defaults(ModelConfig, "model", "tiny")
    return load_encoder_classifier(model, defaults(AdapterConfig, "adapter", "lora"), 2, seed=0)


def of_texts(loaded: Loaded) -> dict[str, Any]:
    texts = [f"message number {number}" for number in range(12)]
    split = Split((texts,), np.arange(12) % 2)
    return {"objective": Classification(), "data": tokenize(split, loaded.tokenizer, 16)}


def tied_lm() -> Loaded:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=40, tie_word_embeddings=True, **shape)
    return Loaded.of(lambda: LlamaForCausalLM(config), made_of="tied")


def of_tokens() -> dict[str, Any]:
    rows = [TokenRow(np.arange(3, 11) + number) for number in range(12)]
    return {"objective": NextToken(), "data": causal_split(rows, max_length=8, pad_token_id=0)}


def normed() -> Loaded:
    return Loaded.of(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), made_of="normed")


def after_saving(loaded: Loaded, damage: Callable[[Path], None]) -> Loaded:
    """The same, but what `save` has written is damaged."""

    def save(model: nn.Module, folder: Path) -> None:
        loaded.save(model, folder)
        damage(folder)

    return replace(loaded, save=save)


def changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    content = load_file(path)
    save_file(change(content), path)


def without(part: str) -> Callable[[Path], None]:
    """Tensors with this in their names are missing."""
    return lambda folder: changed(
        folder / saving.TRAINED, lambda saved: {name: value for name, value in saved.items() if part not in name}
    )


def in_bfloat16(folder: Path) -> None:
    changed(folder / saving.TRAINED, lambda saved: {name: value.bfloat16() for name, value in saved.items()})


def under_another_name(folder: Path) -> None:
    (adapter,) = (path for path in folder.iterdir() if path.is_dir())
    adapter.rename(folder / "default_1")


def untied(loaded: Loaded) -> Loaded:
    def load(model: nn.Module, folder: Path) -> None:
        loaded.load(model, folder)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # type: ignore[union-attr]

    return replace(loaded, load=load)


def losing_buffers(loaded: Loaded) -> Loaded:
    """save and load agree to forget them: no file shows it."""

    def load(model: nn.Module, folder: Path) -> None:
        kept = {name: value.clone() for name, value in model.named_buffers()}
        loaded.load(model, folder)
        for name, value in model.named_buffers():
            value.copy_(kept[name])

    return replace(loaded, load=load)


def casting(loaded: Loaded) -> Loaded:
    def load(model: nn.Module, folder: Path) -> None:
        loaded.load(model, folder)
        model.to(torch.bfloat16)

    return replace(loaded, load=load)


@pytest.mark.parametrize(
    ("make", "plant", "says"),
    [
        pytest.param(linear, lambda it: after_saving(it, without("bias")), "holds no bias", id="a key is missing"),
        pytest.param(classifier, lambda it: after_saving(it, without("head")), r"holds no head\.", id="head not saved"),
        pytest.param(
            classifier, lambda it: after_saving(it, under_another_name), "no trained model with this adapter",
            id="adapter under another name",
        ),
        pytest.param(tied_lm, untied, r"tied in one of the two only: lm_head\.weight", id="tie lost"),
        pytest.param(normed, losing_buffers, r"not the trained values: 1\.running_mean", id="buffers not saved"),
        pytest.param(linear, lambda it: after_saving(it, in_bfloat16), "is bfloat16", id="dtype changed in the file"),
        pytest.param(linear, casting, "of another dtype: bias, weight|of another dtype: weight", id="dtype changed"),
    ],
)  # fmt: skip
def test_what_saving_or_loading_loses_is_named(make: Any, plant: Any, says: str, tmp_path: Path) -> None:
    loaded = make()
    data = of_texts(loaded) if make is classifier else of_tokens() if make is tied_lm else {}
    fitted(tmp_path / "right", loaded, **data)
    with pytest.raises(PrivLMError, match=says):
        fitted(tmp_path / "wrong", plant(make()), **data)
    status = json.loads((tmp_path / "wrong" / "status.json").read_text())
    assert status["stages"]["train"]["state"] != "done"


def test_a_best_step_that_is_not_restored_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, evaluate_every=1, restore_best=True)
    bias = Evaluation("dev", lambda model: {"bias": model.bias.item()}, metric="bias", higher_is_better=False)
    right = fitted(tmp_path / "right", linear(), config, evaluation=bias)
    assert right.outcome.best_step < right.outcome.steps
    outcome = right.outcome
    monkeypatch.setattr(
        Trainer, "_restore_best", lambda self: {"best_step": outcome.best_step, "best": dict(outcome.best)}
    )
    with pytest.raises(PrivLMError, match=rf"not that of step {outcome.best_step}, the best: bias"):
        fitted(tmp_path / "wrong", linear(), config, evaluation=bias)


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_file_that_changed_since_it_was_saved_is_named(damage: str, tmp_path: Path) -> None:
    folder = fitted(tmp_path, linear()).folder
    file = folder / saving.TRAINED
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content) if damage == "flipped" else file.unlink()
    with pytest.raises(UsageError, match=r"trained\.safetensors is absent or has changed since it was saved"):
        load_trained(linear(), folder)


def test_something_that_is_computed_with_but_not_saved_is_seen_in_the_losses(tmp_path: Path) -> None:
    class Scaled(nn.Linear):
        scale = 1.0  # no parameter and no buffer

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.scale += 0.1
            return super().forward(x) * self.scale

    loaded = Loaded.of(lambda: Scaled(3, 1), made_of="scaled")
    with pytest.raises(PrivLMError, match="gives other losses than the trained one"):
        fitted(tmp_path, loaded)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"there is no {TRAINING}"):
        load_trained(linear(), tmp_path)
