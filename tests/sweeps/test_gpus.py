"""Which GPUs each worker of a sweep sees."""

from __future__ import annotations

import pytest

from privlm.sweeps import gpus

pytestmark = pytest.mark.torch_free


@pytest.mark.parametrize(
    ("num_workers", "names", "expected"),
    [
        (1, "ab", [None]),
        (3, "", [None, None, None]),
        (2, "ab", ["a", "b"]),
        (2, "abc", ["a", "b,c"]),
        (3, "abcdefgh", ["a,b", "c,d,e", "f,g,h"]),
        (5, "ab", ["a", "b", "a", "b", "a"]),
    ],
)
def test_each_worker_has_its_share(num_workers, names, expected):
    assert gpus.shares(num_workers, list(names)) == expected


@pytest.mark.parametrize(
    ("given", "expected"), [("0,3", ["0", "3"]), ("GPU-1, MIG-2", ["GPU-1", "MIG-2"]), ("", []), ("-1", [])]
)
def test_what_the_environment_allows_counts(monkeypatch, given, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert gpus.visible() == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo GPU-1; echo GPU-2", ["GPU-1", "GPU-2"]), ("echo no driver; exit 9", []), (None, [])],
)
def test_else_those_of_the_machine(tmp_path, monkeypatch, script, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    assert gpus.visible() == expected
