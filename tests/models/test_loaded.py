"""Loaded: made again, saved and taken up whole, in every family, under every adapter; what does not fit is refused."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedModel

from privlm import hub
from privlm.adapters.adapter import apply_adapter
from privlm.adapters.load import load_causal_lm, load_encoder_classifier
from privlm.config import AdapterConfig, ModelConfig, defaults
from privlm.errors import UsageError
from privlm.models import locate
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import random_causal_lm
from privlm.models.loaded import Loaded
from privlm.models.schema import CausalLMConfig
from privlm.privacy.rgp import Reparametrization

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 40}
ENCODER = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
}  # fmt: skip


class WithBatchNorm(nn.Module):
    """A frozen body whose statistics move in train mode, and a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def adapter(name: str, **changes: Any) -> AdapterConfig:
    return defaults(AdapterConfig, "adapter", name, **changes)


def lm(name: str = "lora", seed: int = 0, random: dict[str, Any] | None = None, **changes: Any) -> Loaded:
    model = defaults(CausalLMConfig, "model", "smollm2", path=None, package=None, gguf_file=None, max_length=32)
    return load_causal_lm(replace(model, random=random or GPT2, **changes), adapter(name), seed)


def classifier(name: str = "lora", seed: int = 0, **changes: Any) -> Loaded:
    model = defaults(ModelConfig, "model", "minilm", package=None, dropout=0.0)
    return load_encoder_classifier(replace(model, random=ENCODER), adapter(name, **changes), 2, seed)


def own(name: str = "head", seed: int = 0) -> Loaded:
    lora = {"rank": 2, "target_modules": ["body.0"]} if name == "lora" else {}

    def build() -> nn.Module:
        model = WithBatchNorm(seed)
        return apply_adapter(model, adapter(name, **lora), 0, model.head)

    return Loaded.of(build, made_of=["own", name, seed])


LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 40,
}  # fmt: skip
MODELS = {
    **{f"classifier {name}": (classifier, {"name": name}) for name in ("head", "lora", "rgp", "full")},
    **{f"gpt2 {name}": (lm, {"name": name}) for name in ("lora", "full")},
    **{f"llama {name}": (lm, {"name": name, "random": LLAMA}) for name in ("lora", "rgp", "full")},
    **{
        f"gpt2 {name}": (lm, {"name": name})
        for name in ("dora", "ia3", "adapter_h", "scaled_parallel", "prefix", "prompt")
    },
    "bfloat16 scaled_parallel": (lm, {"name": "scaled_parallel", "dtype": "bfloat16"}),
    "bfloat16": (lm, {"name": "full", "dtype": "bfloat16"}),
    "bfloat16 lora": (lm, {"name": "lora", "dtype": "bfloat16"}),
    **{f"own {name}": (own, {"name": name}) for name in ("head", "lora", "full")},
}


def moved(model: nn.Module) -> nn.Module:
    """As after training: all that trains and every persistent buffer has changed."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = model.state_dict().keys()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in Reparametrization(model).stepped(trainable).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))
        for name, buffer in model.named_buffers():
            if name in kept:
                buffer.add_(1)
    return model


def contents(model: nn.Module) -> dict[str, bytes]:
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    kept = model.state_dict().keys()
    return {
        name: str(value.dtype).encode() + value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, value in state.items()
        if name in kept
    }


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def ties(model: nn.Module) -> dict[int, list[str]]:
    by_id: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return {key: names for key, names in by_id.items() if len(names) > 1}


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_trained_is_taken_up_bit_for_bit(kind: str, tmp_path: Path) -> None:
    make, settings = MODELS[kind]
    loaded = make(**settings)
    untrained = contents(loaded.model)
    trained = contents(moved(loaded.model))
    assert trained != untrained
    loaded.save(loaded.model, tmp_path)

    again = loaded.fresh()
    assert again.model is not loaded.model
    assert contents(again.model) == untrained
    assert not again.model.training
    again.load(again.model, tmp_path)
    assert contents(again.model) == trained
    assert sorted(ties(again.model).values()) == sorted(ties(loaded.model).values())
    trains = [
        [name for name, p in model.named_parameters() if p.requires_grad] for model in (again.model, loaded.model)
    ]
    assert trains[0] == trains[1]
    other_process = make(**settings)
    assert other_process.digest == loaded.digest
    other_process.load(other_process.model, tmp_path)
    assert contents(other_process.model) == trained


def test_gpt2_keeps_its_tie() -> None:
    (names,) = ties(lm("full").model).values()
    assert names == ["transformer.wte.weight", "lm_head.weight"]


def test_adapter_is_kept_as_files_of_peft_alone(tmp_path: Path) -> None:
    for folder, loaded in ((tmp_path / "lm", lm()), (tmp_path / "classifier", classifier())):
        loaded.save(moved(loaded.model), folder)
    assert load_file(tmp_path / "lm" / "trained.safetensors") == {}
    assert set(load_file(tmp_path / "classifier" / "trained.safetensors")) == {"head.weight", "head.bias"}
    assert {path.name for path in (tmp_path / "lm" / "adapter").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    assert (tmp_path / "classifier" / "encoder" / "adapter_model.safetensors").is_file()


def test_factors_are_not_kept(tmp_path: Path) -> None:
    loaded = classifier("rgp")
    loaded.save(moved(loaded.model), tmp_path)
    names = load_file(tmp_path / "trained.safetensors").keys()
    assert "encoder.encoder.layer.0.attention.self.query.weight" in names
    assert not [name for name in names if "left" in name or "right" in name or name.endswith("initial")]


@pytest.mark.parametrize("make", [lm, classifier, own])
def test_making_a_model_leaves_the_global_generator_alone(make: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    make().fresh()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_hub_model_is_made_again_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    save(random_causal_lm(GPT2), tmp_path / "remote")
    shutil.copy(tmp_path / "remote" / "config.json", snapshot)
    downloads = []

    def download(directory: Path, *_: Any) -> None:
        downloads.append(directory)
        shutil.copytree(tmp_path / "remote", directory, dirs_exist_ok=True)

    monkeypatch.setattr(hub, "find_snapshot", lambda *_: snapshot)
    monkeypatch.setattr(hub, "download", download)
    loaded = load_causal_lm(from_files(None, hub_id="some/body"), adapter("full"), 0)
    monkeypatch.setattr(locate, "locate_model", None)
    assert contents(loaded.fresh().model) == contents(loaded.model)
    assert downloads == [snapshot]


def save(model: PreTrainedModel, folder: Path, tokenizer: Any = None) -> Path:
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def from_files(path: Path | None, **changes: Any) -> CausalLMConfig:
    settings = {"path": path and str(path), "package": None, "gguf_file": None, "max_length": 32}
    return defaults(CausalLMConfig, "model", "smollm2", **(settings | changes))


def test_base_weights_adapter_and_seed_are_told_apart(tmp_path: Path) -> None:
    digests = [lm().digest, lm(seed=1).digest, lm("full").digest, lm(dtype="bfloat16").digest,
               lm(random=LLAMA).digest, classifier().digest, classifier(rank=4).digest]  # fmt: skip
    for seed in (0, 1):
        digests.append(
            load_causal_lm(
                from_files(save(random_causal_lm(GPT2, seed), tmp_path / str(seed))), adapter("lora"), 0
            ).digest
        )
    shutil.copytree(tmp_path / "0", tmp_path / "elsewhere")
    moved_folder = load_causal_lm(from_files(tmp_path / "elsewhere"), adapter("lora"), 0).digest
    assert len(set(digests)) == len(digests)
    assert moved_folder == digests[-2]


def saved(loaded: Loaded, folder: Path) -> Path:
    loaded.save(moved(loaded.model), folder)
    return folder


def edit(path: Path, change: Any) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


FAULTS: dict[str, tuple[str, Any, str]] = {
    "a key missing": ("trained.safetensors", lambda t: t.pop("head.bias"), r"trained.*it holds no head\.bias"),
    "a key too many": ("trained.safetensors", lambda t: t.update(new=torch.ones(1)), "holds new, which this model"),
    "another dtype": (
        "trained.safetensors", lambda t: t.update({"head.bias": t["head.bias"].half()}),
        r"head\.bias is float16 \[2\], not float32 \[2\]",
    ),
    "another shape": (
        "trained.safetensors", lambda t: t.update({"head.bias": torch.ones(3)}),
        r"head\.bias is float32 \[3\], not float32 \[2\]",
    ),
    "an adapter key missing": (
        "encoder/adapter_model.safetensors", lambda t: t.pop(sorted(t)[0]), "adapter_model.*holds no base_model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_was_changed_is_refused_and_nothing_taken_up(fault: str, tmp_path: Path) -> None:
    name, change, message = FAULTS[fault]
    loaded = classifier()
    edit(saved(loaded, tmp_path) / name, change)
    fresh = loaded.build()
    untrained = contents(fresh)
    with pytest.raises(UsageError, match=message):
        loaded.load(fresh, tmp_path)
    assert contents(fresh) == untrained


@pytest.mark.parametrize("name", ["trained.safetensors", "encoder/adapter_model.safetensors"])
def test_a_file_that_is_absent_or_damaged_is_named(name: str, tmp_path: Path) -> None:
    loaded = classifier()
    path = saved(loaded, tmp_path) / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UsageError, match="cannot be loaded"):
        loaded.load(loaded.build(), tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=rf"no {name}"):
        loaded.load(loaded.build(), tmp_path)


def test_an_adapter_under_another_name_is_refused(tmp_path: Path) -> None:
    loaded = lm()
    saved(loaded, tmp_path)
    (tmp_path / "adapter").rename(tmp_path / "adapter_2")
    with pytest.raises(UsageError, match=r"no adapter/adapter_model\.safetensors"):
        loaded.load(loaded.build(), tmp_path)


@pytest.mark.parametrize(("trained", "asked"), [("head", "lora"), ("lora", "head"), ("full", "rgp"), ("rgp", "full")])
def test_a_model_of_another_adapter_is_refused(trained: str, asked: str, tmp_path: Path) -> None:
    saved(classifier(trained), tmp_path)
    loaded = classifier(asked)
    with pytest.raises(UsageError, match=r"holds|with another adapter"):
        loaded.load(loaded.model, tmp_path)


def test_a_model_trained_from_other_weights_is_refused(tmp_path: Path) -> None:
    saved(lm(seed=0), tmp_path)
    loaded = lm(seed=1)
    with pytest.raises(UsageError, match="was trained from other weights"):
        loaded.load(loaded.model, tmp_path)


def test_a_tie_that_was_lost_in_training_is_noticed(tmp_path: Path) -> None:
    loaded = lm("full")
    model: Any = loaded.model
    assert isinstance(model, GPT2LMHeadModel)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    saved(loaded, tmp_path)
    with pytest.raises(UsageError, match=r"holds lm_head\.weight, which this model does not train"):
        loaded.load(loaded.build(), tmp_path)


@pytest.mark.parametrize("name", ["buffers", "head"])
def test_what_is_not_saved_is_missed(name: str, tmp_path: Path) -> None:
    loaded = own("full")
    saved(loaded, tmp_path)
    forgotten = {"buffers": "body.1.running_mean", "head": "head.weight"}[name]
    edit(tmp_path / "trained.safetensors", lambda tensors: tensors.pop(forgotten))
    with pytest.raises(UsageError, match=f"holds no {forgotten}"):
        loaded.load(loaded.build(), tmp_path)


def test_longest_row_is_allowed_and_more_is_refused() -> None:
    assert lm(max_length=40).model(input_ids=torch.ones(1, 40, dtype=torch.long)).logits.shape[1] == 40
    with pytest.raises(UsageError, match=r"model\.max_length=41: smollm2 takes at most 40 tokens"):
        lm(max_length=41)


def test_no_embedding_is_enlarged_for_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    folder = save(random_causal_lm(GPT2), tmp_path, tokenizer)
    with pytest.raises(UsageError, match=rf"embeds {size:,} tokens, its tokenizer has {size + 1:,} .*'<new>'"):
        load_causal_lm(from_files(folder), adapter("lora"), 0)


def test_a_tokenizer_without_padding_trains_as_it_is(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    loaded = load_causal_lm(from_files(save(random_causal_lm(GPT2), tmp_path, tokenizer)), adapter("full"), 0)
    assert loaded.tokenizer.pad_token is None
    assert isinstance(loaded.model, GPT2LMHeadModel)
    assert loaded.model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_half_written_weights_are_one_message(tmp_path: Path) -> None:
    folder = save(random_causal_lm(LLAMA), tmp_path)
    edit(folder / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UsageError, match=r"do not fit config\.json \(first missing: model\.norm\.weight\)"):
        load_causal_lm(from_files(folder), adapter("full"), 0)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_causal_lm(from_files(folder), adapter("full"), 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [({"model_type": "lama"}, "lama"), (LLAMA | {"num_attention_heads": 3}, r"model\.random: there is no such model")],
)
def test_a_shape_of_no_model_is_one_message(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lm(random=shape)


def test_configuration_without_classes_gives_the_same_model() -> None:
    """As a run reads it back from its directory."""
    model = defaults(CausalLMConfig, "model", "smollm2", package=None, gguf_file=None, max_length=32, random=GPT2)
    read: list[Any] = [OmegaConf.create(asdict(config)) for config in (model, adapter("lora"))]
    assert load_causal_lm(*read, seed=0).digest == lm().digest
    with pytest.raises(UsageError, match="this task trains an encoder"):
        load_encoder_classifier(*read, num_labels=2, seed=0)


def test_another_family_is_refused() -> None:
    with pytest.raises(UsageError, match="model=smollm2 is a causal language model, and this task trains an encoder"):
        load_encoder_classifier(from_files(None), adapter("lora"), 2, 0)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="model=minilm is an encoder"):
        load_causal_lm(defaults(ModelConfig, "model", "minilm"), adapter("lora"), 0)  # type: ignore[arg-type]
