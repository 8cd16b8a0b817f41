"""LiRA against the Trainer on a tiny encoder: it finds memorised mislabelled records, and none at epsilon 1."""

import numpy as np
import pytest

from privlm.config import ModelConfig, PrivacyConfig, TrainerConfig, defaults
from privlm.data.encoding import EncodedSplit, tokenize
from privlm.data.text_classification import Split
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier
from privlm.models.locate import locate_model
from privlm.privacy.audit.lira import Rate
from privlm.privacy.audit.verdict import describe_lira
from privlm.privacy.ledger import Ledger
from privlm.privacy.plan import make_plan
from privlm.training.canaries import make_canaries
from privlm.training.classification import Classification
from privlm.training.trainer import Private, Trainer

NUM_RECORDS, NUM_CANARIES, NUM_SHADOWS, STEPS = 128, 64, 4, 30
SHAPE = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
WORDS = tuple("abcdefghij")  # one token each


def tiny() -> tuple[EncoderClassifier, EncodedSplit]:
    """The model in its initial state, and texts of random words, labelled by how many are of the second half."""
    nowhere = {"hub_id": None, "path": None, "package": None, "package_folder": None, "sha256": {}, "pretrained_on": []}
    how = {"pooling": "mean", "normalize_features": False, "head": "linear", "dropout": 0.0, "max_length": 32}
    config = ModelConfig(name="tiny", random=SHAPE, **nowhere, **how)
    model, tokenizer = build_encoder_classifier(config, locate_model(config), 2, seed=0)
    rng = np.random.default_rng(0)
    words_NT = rng.integers(0, len(WORDS), (NUM_RECORDS, 7))
    texts = [" ".join(WORDS[word] for word in row) for row in words_NT]
    return model, tokenize(Split((texts,), (words_NT > 4).sum(axis=1) // 4), tokenizer, config.max_length)


def auc(folder, *, private: bool) -> Rate:
    """Of offline LiRA with shadow runs that differ in the coins of their canaries alone."""
    changes = {"epsilon": 1.0, "delta": 1e-3, "rng": "reproducible"}
    audit = {"canaries": "mislabel", "num_canaries": NUM_CANARIES, "guesses_in": 6, "guesses_out": 6}
    config = defaults(
        TrainerConfig, "trainer", "single", batch_size=64, micro_batch_size=128, optimizer="adamw", learning_rate=1e-3
    )
    plan = None
    for seed in range(NUM_SHADOWS + 1):
        model, data = tiny()
        privacy = defaults(PrivacyConfig, "privacy", "dp_sgd", **changes, audit=audit | {"seed": seed})
        plan = plan or make_plan(privacy, dataset_size=NUM_RECORDS, batch_size=64, steps=STEPS)
        canaries = make_canaries(privacy.audit, clipping_norm=1.0, folder=folder / str(seed))
        protection = Private(plan, Ledger()) if private else None
        Trainer(model, Classification(), data, config, seed=seed, private=protection, canaries=canaries).run(STEPS)
    lira = describe_lira(folder / "0", [folder / str(seed) for seed in range(1, NUM_SHADOWS + 1)])
    return Rate(**lira["rates"]["auc"])


@pytest.mark.medium
def test_memorised_canaries_are_found_and_private_ones_are_not(tmp_path):
    for name in ("open", "private"):
        (tmp_path / name).mkdir()
    found = auc(tmp_path / "open", private=False)
    assert found.value > 0.6
    assert found.ci_low > 0.5
    hidden = auc(tmp_path / "private", private=True)
    assert hidden.ci_low < 0.5 < hidden.ci_high
