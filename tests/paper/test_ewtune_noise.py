"""The noise multipliers of EW-Tune's settings (arXiv 2210.15042), against independently computed values."""

from types import SimpleNamespace

import pytest

from privlm.config import configs_dir
from privlm.report.noise_table import noise_table
from privlm.report.table_file import read_yaml

pytestmark = pytest.mark.torch_free

SIGMAS = ("RDP", "GDP", "AEA-1", "AEA-2", "AEA-3", "PLD")
PRICED = ("AEA-2", "AEA-3", "GDP")

# (setting, data, target epsilon): sigma of SIGMAS, real epsilon of PRICED, savings of PLD and AEA-2 in percent
GOLDEN = {
    ("RGP", "SST-2", 8): (1.0494, 0.9741, 1.0193, 1.0249, 1.0211, 1.0027, 7.668, 7.722, 8.470, 4.45, 2.33),
    ("RGP", "QNLI", 8): (0.9201, 0.8566, 0.8933, 0.9000, 0.8992, 0.8824, 7.663, 7.678, 8.549, 4.09, 2.18),
    ("RGP", "QQP", 8): (0.6905, 0.6446, 0.6651, 0.6728, 0.6768, 0.6667, 7.776, 7.636, 8.899, 3.45, 2.56),
    ("RGP", "MNLI", 8): (0.6808, 0.6354, 0.6553, 0.6630, 0.6671, 0.6574, 7.791, 7.640, 8.926, 3.43, 2.62),
    ("RGP", "SST-2", 3): (1.9905, 1.8294, 1.8961, 1.8737, 1.8669, 1.8662, 2.984, 2.998, 3.081, 6.24, 5.87),
    ("RGP", "QNLI", 3): (1.6480, 1.5200, 1.5758, 1.5577, 1.5515, 1.5507, 2.981, 2.998, 3.087, 5.90, 5.48),
    ("RGP", "QQP", 3): (1.0409, 0.9721, 1.0089, 1.0004, 0.9949, 0.9929, 2.957, 2.988, 3.125, 4.62, 3.89),
    ("RGP", "MNLI", 3): (1.0163, 0.9497, 0.9858, 0.9779, 0.9724, 0.9702, 2.954, 2.987, 3.129, 4.54, 3.78),
    ("Li", "SST-2", 3): (0.8221, 0.6321, 0.6773, 0.7032, 0.7251, 0.7618, 3.785, 3.463, 5.162, 7.34, 14.46),
    ("Li", "QNLI", 3): (0.9464, 0.7792, 0.8490, 0.8759, 0.8957, 0.8875, 3.101, 2.932, 4.203, 6.22, 7.45),
    ("Li", "QQP", 3): (1.1732, 1.0562, 1.1363, 1.1445, 1.1398, 1.1169, 2.872, 2.893, 3.328, 4.80, 2.44),
    ("Li", "SST-2", 8): (0.5787, 0.4926, 0.4757, 0.4915, 0.5050, 0.5440, 10.76, 9.944, 10.69, 5.99, 15.08),
    ("Li", "QNLI", 8): (0.6522, 0.5616, 0.5624, 0.5794, 0.5936, 0.6179, 9.617, 8.969, 10.52, 5.27, 11.17),
    ("Li", "QQP", 8): (0.7552, 0.6734, 0.6961, 0.7114, 0.7229, 0.7243, 8.403, 8.043, 9.789, 4.09, 5.81),
    ("B1000 3ep", "QNLI", 3): (0.7754, 0.5895, 0.6257, 0.6481, 0.6670, 0.7180, 4.117, 3.767, 5.500, 7.41, 16.43),
    ("B1000 3ep", "QNLI", 8): (0.5540, 0.4701, 0.4523, 0.4663, 0.4784, 0.5216, 11.26, 10.42, 10.99, 5.84, 15.83),
}
FAST = [("RGP", "SST-2", 3), ("Li", "SST-2", 8)]


@pytest.fixture(scope="module")
def spec():
    return {"name": "ewtune_noise"} | read_yaml(configs_dir() / "table" / "ewtune_noise.yaml")


def short(setting: str) -> str:
    """The author in brackets, or the setting itself where no paper stands behind it."""
    return setting.partition("(")[2].rstrip(")") or setting


def test_the_table_has_all_rows_in_order(spec):
    assert [(short(row["setting"]), row["data"], row["epsilon"]) for row in spec["rows"]] == list(GOLDEN)
    assert any("cannot be decided" in note for note in spec["notes"])


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=[] if key in FAST else pytest.mark.medium, id="-".join(map(str, key))) for key in GOLDEN],
)
def test_golden_noise_multipliers(spec, key):
    golden = GOLDEN[key]
    rows = [row for row in spec["rows"] if (short(row["setting"]), row["data"], row["epsilon"]) == key]
    calls = []
    table = noise_table(spec | {"rows": rows}, progress=lambda done, total: calls.append((done, total)))
    [values], [cells] = table.values, table.rows

    assert calls == [(1, 1)]
    assert [values[f"sigma_{name}"] for name in SIGMAS[1:]] == pytest.approx(golden[1:6], abs=1e-3)
    assert values["sigma_RDP"] == pytest.approx(golden[0], abs=2e-3)
    assert [values[f"real_epsilon_{name}"] for name in PRICED] == pytest.approx(golden[6:9], abs=6e-3)
    assert values["saving_PLD_percent"] == pytest.approx(golden[9], abs=0.03)

    target = key[2]
    printed = dict(zip(table.columns, cells, strict=True))
    assert float(printed["sigma PLD (certified)"]) >= values["sigma_PLD"]
    for name, real in zip(PRICED, golden[6:9], strict=True):
        assert printed[f"real eps at {name}"].endswith("!") == (real > target)
    if golden[6] > target:
        assert printed["saving AEA-2 %"] == f"invalid (spends {values['real_epsilon_AEA-2']:.3f})"
        assert values["saving_AEA-2_percent"] is None
    else:
        assert values["saving_AEA-2_percent"] == pytest.approx(golden[10], abs=0.03)
        assert values["saving_PLD_percent"] > values["saving_AEA-2_percent"] > 0


def test_large_deltas_are_named(spec, monkeypatch):
    monkeypatch.setattr("privlm.privacy.accounting.noise_multiplier", lambda **_: SimpleNamespace(noise_multiplier=2.0))
    monkeypatch.setattr("privlm.privacy.accounting.epsilon", lambda *_, **__: SimpleNamespace(epsilon=1.0))
    assert noise_table(spec).notes == [*spec["notes"], "delta >= 1/N, a weak promise, in rows of: QNLI, QQP, MNLI"]
    short_rows = [row for row in spec["rows"] if row["delta"] == "1/2N"]
    assert noise_table(spec | {"rows": short_rows}).notes == spec["notes"]
