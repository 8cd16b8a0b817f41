"""One release for records and for clients: accounted, noised once, and never with the noise of other sums."""

from pathlib import Path

import pytest
import torch
from naive import release as release_of
from torch import Tensor, nn

from privlm.errors import UsageError
from privlm.privacy import release as module
from privlm.privacy.accounting import Segment
from privlm.privacy.engine import PrivacyEngine
from privlm.privacy.ledger import Ledger, Setting
from privlm.privacy.noise import ReproducibleNoise, SecureNoise
from privlm.privacy.release import release
from privlm.privacy.watch import MechanismError, ReleaseCheck

CLIENTS = Setting(sampling_rate=0.25, noise_multiplier=0.5, clipping_norm=2.0, expected_batch_size=5.0, unit="client")


def deltas(num_clients: int, norm: float = CLIENTS.clipping_norm) -> list[Tensor]:
    """The sum of parameter deltas of clients that agree, in two tensors with `norm` for each client."""
    torch.manual_seed(0)
    parts = [torch.randn(3, 200), torch.randn(400)]
    total = torch.cat([part.flatten() for part in parts]).norm()
    return [num_clients * norm * part / total for part in parts]


def released(sums: list[Tensor], ledger: Ledger | None, check: ReleaseCheck | None = None, step: int = 1) -> Tensor:
    noised = release(
        sums,
        ReproducibleNoise(0),
        step=step,
        setting=CLIENTS,
        num_units=4,
        check=check or ReleaseCheck(CLIENTS.clipping_norm),
        world=None,
        ledger=ledger,
    )
    return torch.cat([part.flatten() for part in noised])


def test_a_round_of_clients_is_their_noised_sum_by_the_expected_number() -> None:
    ledger = Ledger()
    noise = released(deltas(4), ledger.of("rounds")) - torch.cat([part.flatten() for part in deltas(4)]) / 5
    assert noise.std() == pytest.approx(0.5 * 2.0 / 5, rel=0.1)  # sigma C / expected number of clients, 1,000 numbers
    (line,) = ledger.releases
    assert (line.stage, line.step, line.setting, line.device) == ("rounds", 1, CLIENTS, "cpu")
    assert ledger.segments(unit="client") == [Segment(0.25, 0.5, 1)]


def test_clients_that_were_not_clipped_are_refused() -> None:
    with pytest.raises(MechanismError, match="clipping: the sum of 4 clipped contributions"):
        released(deltas(4, norm=2.1), Ledger())


def test_rounds_only_go_forward_and_only_with_an_account() -> None:
    check, ledger = ReleaseCheck(CLIENTS.clipping_norm), Ledger()
    released(deltas(4), ledger, check, step=3)
    with pytest.raises(ValueError, match="step 3 comes after the release of step 3"):
        released(deltas(4), ledger, check, step=3)
    with pytest.raises(ValueError, match="needs a ledger"):
        released(deltas(4), None, check, step=4)
    assert len(ledger) == 1


def one_step(record: list[float], ledger: Ledger, noise: ReproducibleNoise | SecureNoise) -> Tensor:
    """An engine of its own, as a stage has one, after its first step on one record."""
    torch.manual_seed(1)
    engine = PrivacyEngine(nn.Linear(4, 1, bias=False), clipping_norm=1.0)
    engine.backward(lambda model, x: model(x).squeeze(-1), torch.tensor([record]))
    release_of(engine, step=1, noise=noise, ledger=ledger)
    return engine.model.weight.grad


ONE, OTHER = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("stages", [("", ""), ("teacher", "student")])
def test_two_stages_of_one_seed_cannot_share_their_noise(stages: tuple[str, str]) -> None:
    """The difference of the two releases would be that of the records."""
    ledger = Ledger()
    first, second = (ledger.of(stage) for stage in stages)
    one_step(ONE, first, ReproducibleNoise(0))
    with pytest.raises(UsageError, match="step 1 would use noise again"):
        one_step(OTHER, second, ReproducibleNoise(0))
    difference = one_step(OTHER, second, ReproducibleNoise(1)) - one_step(
        ONE, ledger.of(stages[0]), ReproducibleNoise(0)
    )
    assert (difference - torch.tensor([-1.0, 1.0, 0.0, 0.0])).abs().max() > 1e-2
    assert sum(segment.steps for segment in ledger.segments()) == 2


def test_a_step_taken_again_is_the_same_release(tmp_path: Path) -> None:
    for path in (None, tmp_path / "ledger.jsonl"):
        ledger = Ledger(path)
        first = one_step(ONE, ledger, ReproducibleNoise(0))
        assert torch.equal(one_step(ONE, Ledger(path) if path else ledger, ReproducibleNoise(0)), first)
        assert [segment.steps for segment in (Ledger(path) if path else ledger).segments()] == [1]


def test_a_step_taken_again_with_other_sums_is_refused_by_a_new_process_too(tmp_path: Path) -> None:
    """As after a kill, with another learning rate or other data: the same noise would hide neither."""
    one_step(ONE, Ledger(tmp_path / "ledger.jsonl"), ReproducibleNoise(0))
    with pytest.raises(UsageError, match=r"noise again that has been released with other sums.* learning rate"):
        one_step(OTHER, Ledger(tmp_path / "ledger.jsonl"), ReproducibleNoise(0))
    assert len(Ledger(tmp_path / "ledger.jsonl")) == 1


def test_nothing_of_the_sums_is_written_that_the_seed_does_not_open(tmp_path: Path) -> None:
    lines = {}
    for name, record, seed in (("one", ONE, 0), ("other", OTHER, 0), ("seed", ONE, 1)):
        one_step(record, Ledger(tmp_path / name), ReproducibleNoise(seed))
        (lines[name],) = Ledger(tmp_path / name).releases
    assert lines["one"].noise_id == lines["other"].noise_id
    assert len({line.sums for line in lines.values()}) == 3
    one_step(ONE, Ledger(tmp_path / "secure"), SecureNoise())
    assert Ledger(tmp_path / "secure").releases[0].sums == ""


def test_secure_noise_is_fresh_for_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(module, "_digest")  # a digest of private sums is not even made
    ledger = Ledger()
    for record in (ONE, OTHER, ONE):
        one_step(record, ledger, SecureNoise())
    assert [segment.steps for segment in ledger.segments()] == [3]
