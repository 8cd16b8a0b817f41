"""The tables of EW-Tune that runs fill: what each cell runs, and where its published figure is from."""

import pytest
from support.composed import composed

from privlm.config import configs_dir
from privlm.report.table_file import parse_table, read_yaml

pytestmark = pytest.mark.torch_free


def table(name):
    return parse_table(name, read_yaml(configs_dir() / "table" / f"{name}.yaml"))


def config_of(cell):
    return composed(*cell.run)


def test_accuracy_is_that_of_the_published_setting():
    rows = table("ewtune_accuracy").rows
    published = {row: [cell.published for cell in cells.values()] for row, cells in rows.items()}
    assert published["RGP, roberta-base"] == [80.5, 79.6, 87.2, 85.5, 91.6]
    assert published["EW-Tune"] == [None] * 5  # its table could not be obtained: never a guess
    assert all(cell.source for cells in rows.values() for cell in cells.values() if cell.published is not None)
    for column, data in {"mnli_m": "mnli", "qnli": "qnli", "qqp": "qqp", "sst2": "sst2"}.items():
        config = config_of(rows["RGP, roberta-base"][column])
        assert (config.scale, config.model.name, config.data.name, config.adapter.name) == (
            "paper",
            "roberta",
            data,
            "rgp",
        )
        assert (config.privacy.epsilon, config.privacy.delta, config.trainer.batch_size) == (8.0, 1e-5, 2000)
        assert rows["RGP, roberta-base"][column].column.split in (None, *config.data.eval_splits)
        assert config.data.max_train_examples is None


def test_small_compares_the_two_noises_on_the_same_draws():
    file = table("ewtune_small")
    assert [(claim.higher, claim.than) for claim in file.claims] == [
        (f"{epsilon}, paired, σ by PLD", f"{epsilon}, paired, σ by RDP") for epsilon in (3, 1)
    ]
    for claim in file.claims:
        pair = [config_of(file.rows[row]["accuracy"]).privacy for row in (claim.higher, claim.than)]
        assert [privacy.accountant for privacy in pair] == ["pld", "rdp"]
        assert {privacy.rng for privacy in pair} == {"reproducible"}
        assert len({privacy.epsilon for privacy in pair}) == 1
    assert config_of(file.rows["none"]["accuracy"]).privacy.mechanism == "none"
