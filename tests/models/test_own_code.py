"""A model folder that brings code along: it is never run, whatever is typed, and said or refused."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from privlm.config import ModelConfig, defaults
from privlm.errors import UsageError
from privlm.models.byte_level import byte_tokenizer
from privlm.models.causal import apply_peft, build_causal_lm, context_length
from privlm.models.causal import load_tokenizer as load_causal_tokenizer
from privlm.models.encoder import build_encoder_classifier
from privlm.models.locate import ModelFiles
from privlm.models.scratch import from_scratch
from privlm.models.wordpiece import word_piece_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SMALL: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
AUTO_MAP = {
    "AutoConfig": "own.Own",
    "AutoModel": "own.Own",
    "AutoModelForCausalLM": "own.Own",
    "AutoTokenizer": ["own.Own", "own.Own"],
}


@pytest.fixture(params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose code would leave a mark beside it; on standard input lies a `y` for each question."""
    directory = tmp_path / request.param
    small: Any
    if request.param == "bert":
        tokenizer = word_piece_tokenizer()
        shape = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **SMALL)
        small = BertModel(shape, add_pooling_layer=False)
    else:
        tokenizer = byte_tokenizer()
        small = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2))
    small.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for name in ("config.json", "tokenizer_config.json"):
        change(directory / name, auto_map=AUTO_MAP)
    code = f"open({str(tmp_path / 'was run')!r}, 'w')\nclass Own: pass\n"
    (directory / "own.py").write_text(code)
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(code)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return directory


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def load(folder: Path) -> None:
    files = ModelFiles("path", folder, "sha256:" + "0" * 64)
    if folder.name == "bert":
        build_encoder_classifier(defaults(ModelConfig, "model", "tiny", path=str(folder), max_length=16), files, 2, 0)
    else:
        load_causal_tokenizer(files)
        context_length(files, None)
        build_causal_lm(files, None, torch.float32)


def test_code_beside_a_known_architecture_is_left_alone_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(folder)
    assert f"auto_map names is not run: the architecture {folder.name} of transformers" in caplog.text
    assert not (folder.parent / "was run").exists()


REFUSED = {
    "auto_map names code of the folder's own": {"model_type": "unheard_of"},
    "attention code of a hub": {"attn_implementation": "somebody/kernels"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_had_without_code_is_refused(sentence: str, folder: Path) -> None:
    change(folder / "config.json", **REFUSED[sentence])
    with pytest.raises(UsageError, match=sentence):
        load(folder)
    assert not (folder.parent / "was run").exists()


def test_adapter_beside_weights_is_no_other_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    with pytest.raises(UsageError, match=r"holds an adapter beside its weights: move adapter_config\.json away"):
        load(folder)


def test_shape_and_adapter_name_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    config: Any = BertConfig(vocab_size=16, **SMALL)
    config.auto_map = {"AutoModel": "somebody/else--own.Own"}
    from transformers import AutoModel

    assert type(from_scratch(AutoModel, config, 0)).__name__ == "BertModel"
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "megatron_config": {}, "megatron_core": "own"}'
    )
    change(tmp_path / "adapter_config.json", megatron_config={"a": 1})
    with pytest.raises(UsageError, match="megatron_config names code, which is never run"):
        apply_peft(None, tmp_path)


# --- a rule of the house --------------------------------------------------------------------------------------------

Rule = Callable[[ast.Call], bool]


def _has(call: ast.Call, *names: str) -> bool:
    """Whether one of the mappings of privlm.models.loading is among the keywords."""
    return any(word.arg is None and ast.unparse(word.value) in names for word in call.keywords)


def may_run_code(tree: ast.AST, of_diffusers: bool = False) -> Iterator[str]:
    """Calls that would load code, or a pickle, from a file.

    of_diffusers: its from_config takes settings in memory for a class that the caller has chosen, and its
    from_pretrained says whether a pickle may be read, of tensors alone.
    """
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        loads = name.rpartition(".")[2] in ("from_pretrained", "from_config") and not name.startswith("PeftModel")
        is_safe = of_diffusers and (name.endswith(".from_config") or "use_safetensors" in keywords)
        if loads and not is_safe and not _has(call, "NO_CODE", "NO_PICKLE"):
            yield name
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield name
        if name == "np.load" and keywords.get("allow_pickle") != "False":
            yield name
        if name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "joblib.load"):
            yield name


def test_no_call_loads_code_or_pickles():
    planted = "AutoModel.from_pretrained(x)\ntorch.load(y)\nAutoModel.from_config(z, **NO_CODE)\nnp.load(x)\nexec(y)\n"
    assert list(may_run_code(ast.parse(planted))) == ["AutoModel.from_pretrained", "torch.load", "np.load", "exec"]
    paths = [path for folder in ("privlm", "runners") for path in (ROOT / folder).rglob("*.py")]
    assert list(may_run_code(ast.parse("kind.from_pretrained(x)"), of_diffusers=True)) == ["kind.from_pretrained"]
    found = {
        str(path.relative_to(ROOT)): list(may_run_code(ast.parse(path.read_text()), "diffusion" in path.parts))
        for path in paths
    }
    assert {path: names for path, names in found.items() if names} == {}
