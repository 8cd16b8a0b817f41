"""`transformers serve` on loopback, with a tiny model of random weights."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 180.0


def save_tiny_model(folder: Path) -> Path:
    """The weights and the tokenizer of llm=tiny, as a folder that any program of transformers can load."""
    from privlm.config import LocalLLMConfig, defaults
    from privlm.models.byte_level import byte_tokenizer
    from privlm.models.causal import random_causal_lm

    shape = defaults(LocalLLMConfig, "llm", "tiny").random
    random_causal_lm(shape).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """Starts the server and waits for it; yields its address, with /v1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--default-seed", "0"]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _is_up(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
