"""The neighbour check lets ordinary models pass, as they are trained: with dropout and padding, in batches of any size.

What it accepts is then as sensitive as clipping allows: without a record the clipped sum moves by the clipping norm.
"""

from types import ModuleType

import pytest
import torch
from naive import release
from support import benchmarks
from torch import Tensor, nn

from privlm.privacy.engine import PrivacyEngine

ARCHITECTURES = (
    "bert", "roberta", "distilbert", "deberta-v2", "electra", "albert", "gpt2", "gpt_neo", "gptj", "gpt_neox", "opt",
    "bloom", "llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "phi", "t5", "bart", "vit",
    "whisper", "mamba",
)  # fmt: skip


@pytest.fixture(scope="module")
def small_models() -> ModuleType:
    return benchmarks.script("small_models")


def with_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    return model


def clipped_sum(engine: PrivacyEngine, small_models: ModuleType, batch: dict[str, Tensor], step: int) -> Tensor:
    engine.backward(small_models.losses, batch)
    release(engine, step=step, noise_multiplier=0.0)
    gradients = [parameter.grad.flatten() for parameter in engine.model.parameters() if parameter.requires_grad]
    engine.model.zero_grad()
    return torch.cat(gradients)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_accepted_and_no_record_counts_for_more_than_the_clipping_norm(
    architecture: str, small_models: ModuleType
) -> None:
    model = with_dropout(small_models.build(architecture, "full"))
    engine = PrivacyEngine(model, clipping_norm=0.01)  # far below: every record is clipped
    batch = small_models.batch_of(architecture, 6, 9)
    engine.backward(small_models.losses, {name: value[:1] for name, value in batch.items()})
    assert engine.is_look_due
    engine.backward(small_models.losses, batch)
    assert not engine.is_look_due
    release(engine, step=1, noise_multiplier=0.0)
    release(engine, step=2, noise_multiplier=0.0)  # of no record at all
    model.eval()
    total = clipped_sum(engine, small_models, batch, 3)
    for step, j in enumerate((0, 3), start=4):
        rest = {name: torch.cat([value[:j], value[j + 1 :]]) for name, value in batch.items()}
        assert (total - clipped_sum(engine, small_models, rest, step)).norm() <= 0.01 * 1.001
