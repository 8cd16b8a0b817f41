"""The Accelerator of a run: what it refuses."""

import signal
from typing import Any

import pytest
from accelerate.utils import DistributedType

from privlm.config import TrainerConfig, defaults
from privlm.errors import PrivLMError, UsageError
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


def test_processes_that_do_not_meet_are_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**keywords: Any) -> None:
        raise ValueError("the server socket has failed to listen\nframe #0: ...")

    monkeypatch.setattr(accelerator, "PartialState", fail)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(PrivLMError, match=r"do not meet at MASTER_ADDR=10\.0\.0\.1, MASTER_PORT=29500: the .*listen$"):
        accelerator.join_world()
    assert signal.getsignal(signal.SIGINT) is before
