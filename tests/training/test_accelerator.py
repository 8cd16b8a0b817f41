"""The Accelerator of a run: what it refuses."""

from typing import Any

import pytest
from accelerate.utils import DistributedType

from privlm.config import TrainerConfig, defaults
from privlm.errors import UsageError
from privlm.training import accelerator


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_training_is_refused_in_one_sentence(kind: DistributedType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharding:
        num_processes = 1
        distributed_type = kind

        def __init__(self, **keywords: Any) -> None: ...

    monkeypatch.setattr(accelerator, "Accelerator", Sharding)
    with pytest.raises(UsageError, match="FSDP and DeepSpeed are not supported: use trainer=single or trainer=ddp"):
        accelerator.make_accelerator(defaults(TrainerConfig, "trainer", "single"))


def test_unknown_keyword_is_refused_by_name() -> None:
    config = defaults(TrainerConfig, "trainer", "single", accelerate={"mixed_precison": "bf16"})
    with pytest.raises(UsageError, match=r"trainer\.accelerate: .*mixed_precison"):
        accelerator.make_accelerator(config)
