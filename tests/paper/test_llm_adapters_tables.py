"""LLM-Adapters (arXiv 2304.01933): the released data where they lie beside the checkout, the tables, what a run of the
paper is.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from omegaconf import OmegaConf
from privlm.runners.llm_adapters.math_data import load
from support.composed import composed

from privlm.config import configs_dir
from privlm.report.table_file import TableFile, parse_table, read_yaml

pytestmark = pytest.mark.torch_free

RELEASED = Path(__file__).resolve().parents[3] / "shared" / "data" / "llm_adapters_math"
SEVEN = "test_sets=[MultiArith,gsm8k,AddSub,AQuA,SingleEq,SVAMP,mawps]"


@pytest.fixture(scope="module")
def released() -> Path:
    if not RELEASED.is_dir():
        pytest.skip("needs the released sets of LLM-Adapters in ../shared/data/llm_adapters_math")
    return RELEASED


def data(released: Path, *words: str) -> Any:
    group = OmegaConf.create(OmegaConf.to_container(composed("task=llm_adapters", "data=llm_adapters").data))
    group.merge_with_dotlist([f"path={released}", SEVEN, "num_test_questions=null", *words])
    return load(group)


def test_the_released_sets_have_their_sizes_and_are_known_by_their_rows(released: Path) -> None:
    whole = data(released, "split=full", "allow_leak=true", "num_held_out=0")
    assert {name: len(test) for name, test in whole.tests.items()} == {
        "MultiArith": 600, "gsm8k": 1319, "AddSub": 395, "AQuA": 254, "SingleEq": 508, "SVAMP": 1000, "mawps": 238,
    }  # fmt: skip
    assert len(whole.train) == 3260
    assert whole.content.known
    assert whole.marks == ("leaking",)
    exact = {name: (shared.exact_test, shared.exact_train) for name, shared in whole.overlaps.items()}
    assert exact["gsm8k"] == (1055, 1055)  # 80 % of 1,319
    assert exact["SVAMP"] == (800, 800)
    assert exact["AddSub"] == (334, 413)


def test_v1_leaves_the_other_fifth_or_less(released: Path) -> None:
    split = data(released, "num_held_out=120")
    assert {name: len(test) for name, test in split.tests.items()} == {
        "MultiArith": 109, "gsm8k": 264, "AddSub": 61, "AQuA": 51, "SingleEq": 80, "SVAMP": 200, "mawps": 104,
    }  # fmt: skip
    assert (len(split.train), len(split.held_out)) == (3140, 120)
    assert not any(shared.exact_test for shared in split.overlaps.values())


def test_mawps_repeats_412_times_a_question_of_addsub(released: Path) -> None:
    words = ("train_file=mawps/trainset", "split=full", "allow_leak=true", "num_held_out=0")
    mawps = data(released, *words)
    assert mawps.content.known
    found = {name: shared.exact_train for name, shared in mawps.overlaps.items()}
    assert mawps.overlaps["AddSub"].num_train == 1898
    assert found == {"AddSub": 412, "MultiArith": 484, "SingleEq": 543, "mawps": 27, "gsm8k": 0, "AQuA": 0, "SVAMP": 0}


# --- tables -----------------------------------------------------------------------------------------------


def table(name: str) -> TableFile:
    return parse_table(name, read_yaml(configs_dir() / "table" / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "rows"), [("llm_adapters_v1", 12), ("llm_adapters_v2", 16), ("llm_adapters_emnlp4", 16)]
)
def test_published_averages_are_those_of_their_rows(name: str, rows: int) -> None:
    accuracies = {}
    for row, cells in table(name).rows.items():
        of_row = {key: cell.published for key, cell in cells.items() if cell.published is not None}
        if "average" in of_row:
            accuracies[row] = of_row
            sets = [value for key, value in of_row.items() if key not in ("params", "average")]
            assert len(sets) == (4 if name.endswith("4") else 6)
            assert mean(sets) == pytest.approx(of_row["average"], abs=0.051), row
    assert len(accuracies) == rows + 1
    assert accuracies["GPT-3.5, zero-shot CoT"]["gsm8k"] == 56.4


def test_the_leaking_table_says_so() -> None:
    assert "LEAKING" in table("llm_adapters_v2").title
    assert any("412 of the 1,898" in note for note in table("llm_adapters_v2").notes)


BOTTLENECK = {"bottleneck_size": 256, "activation": "tanh", "scale": 1.0, "init": "bert", "dropout": 0.0}
PUBLISHED = {
    "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.05},
    "lora_emnlp": {"rank": 32, "alpha": 64.0, "dropout": 0.05},
    "adapter_h": BOTTLENECK,
    "adapter_p": BOTTLENECK,
    "parallel": BOTTLENECK,
    "prefix": {"num_virtual_tokens": 10},
}
BESIDE_THE_MLP = {"llama_7b": ["up_proj", "down_proj"], "gptj_6b": ["fc_in", "fc_out"]}


def test_every_published_row_has_a_run() -> None:
    for name in ("llm_adapters_v1", "llm_adapters_v2", "llm_adapters_emnlp4"):
        without = {row for row, cells in table(name).rows.items() for cell in cells.values() if cell.run is None}
        assert without == {"GPT-3.5, zero-shot CoT"}


def test_a_run_of_the_paper_has_the_published_settings() -> None:
    for name, setting in {"llm_adapters_v1": "v1", "llm_adapters_v2": "v2", "llm_adapters_emnlp4": "emnlp4"}.items():
        rows = {
            row: cells
            for row, cells in table(name).rows.items()
            if row.startswith("LLaMA-7B")
            or (setting, row) in (("v1", "BLOOM-7B, LoRA"), ("emnlp4", "GPT-J-6B, Parallel"))
        }
        runs = {cell.run for cells in rows.values() for cell in cells.values() if cell.run is not None}
        assert len(runs) == (4 if setting == "v2" else 5)
        for words in runs:
            config = composed(*words)
            trainer, task, data, adapter = config.trainer, config.task, config.data, config.adapter
            assert (config.scale, config.model.dtype, config.model.max_length) == ("paper", "float16", 256)
            sizes = trainer.batch_size, trainer.micro_batch_size, trainer.epochs, trainer.steps, trainer.learning_rate
            assert sizes == ((8, 4, 5, None, 3e-2) if adapter.name == "prefix" else (16, 4, 3, None, 3e-4))
            assert (trainer.optimizer, trainer.schedule) == ("adamw", "linear")
            assert (trainer.warmup_steps, trainer.precision, trainer.max_grad_norm) == (100, "fp16", 1.0)
            assert (task.num_beams, task.max_new_tokens, task.train_on_inputs) == (4, 256, True)
            assert (task.prompt_style, task.prompt_mismatch) == ("llm_adapters_verbatim", "none")
            assert (data.name, data.num_held_out) == ("llm_adapters", 120)
            assert data.train_file == ("math_data" if setting == "v1" else "math_10k")
            assert (data.split, data.allow_leak) == (("v1_80_20", False) if setting == "v1" else ("full", True))
            assert len(data.test_sets) == (4 if setting == "emnlp4" else 6)
            expected = PUBLISHED[adapter.name]
            assert {name: adapter[name] for name in expected} == expected
            is_moved = adapter.name == "parallel" and setting == "emnlp4"
            assert adapter.target_modules == (BESIDE_THE_MLP[config.model.name] if is_moved else None)
            is_fused = adapter.name == "lora" and config.model.name == "bloomz_7b1"
            assert adapter.get("fused_qkv") == ("qv" if is_fused else None)
            assert data.max_train_examples is data.num_test_questions is None


def test_a_dry_run_of_the_paper_tells_them(released: Path) -> None:
    from privlm.registry import tasks

    words = ("task=llm_adapters", "scale=paper", "task.version=v1", "model=tiny_lm", f"data.path={released}")
    plan = tasks()["llm_adapters"].plan(composed(*words))
    assert (plan["training_examples"], plan["steps"], plan["batch_size"]) == (3140, 589, 16)
    assert (plan["learning_rate"], plan["warmup_steps"], plan["num_beams"]) == (3e-4, 100, 4)
    assert plan["questions"]["gsm8k"] == 264
    assert plan["contaminated"]["AddSub"] == 0
