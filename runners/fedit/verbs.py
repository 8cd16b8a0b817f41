"""`privlm fedit VERB`."""

from __future__ import annotations

from privlm.cli import export_app as exported


def export_app(argv: list[str]) -> int:
    """a run as an app of Flower, its clients on their own machines: privlm fedit export-app DIR federated.rounds=10"""
    return exported.main("fedit", argv)


VERBS = {"export-app": export_app}
