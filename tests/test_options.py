"""The names that a field takes are the keys of the table that serves them; the schemas know them without torch."""

import importlib

import pytest

from privlm.cli.schemas import options_of

TABLES = {
    "trainer.optimizer": ("privlm.training.optimizers", "OPTIMIZERS"),
    "trainer.schedule": ("privlm.training.schedule", "SCHEDULES"),
    "trainer.precision": ("privlm.training.accelerator", "PRECISION"),
    "adapter.name": ("privlm.adapters.adapter", "ADAPTERS"),
    "privacy.clipping": ("privlm.privacy.clipping.styles", "STYLES"),
    "privacy.accountant": ("privlm.privacy.accounting.types", "ACCOUNTANTS"),
    "privacy.adjacency": ("privlm.privacy.accounting.types", "ADJACENCIES"),
    "data.format": ("privlm.data.text_classification", "FORMATS"),
    "data.template": ("privlm.data.instructions", "TEMPLATES"),
}
"""Field -> the module and name of its table."""


@pytest.mark.parametrize("field", TABLES)
def test_options_are_the_keys_of_their_table(field):
    module, name = TABLES[field]
    assert options_of(field) == sorted(getattr(importlib.import_module(module), name))


def test_dtypes_are_those_of_torch():
    import torch

    for field in ("model.dtype", "llm.dtype"):
        assert all(isinstance(getattr(torch, name), torch.dtype) for name in options_of(field))


def test_canaries_are_those_of_the_command_and_none():
    from privlm.cli.audit import KINDS

    assert options_of("privacy.audit.canaries") == sorted(["none", *KINDS])
