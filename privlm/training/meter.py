"""Speed and memory of a training run, as its log shows them."""

from __future__ import annotations

import resource
import sys
import time

import torch


class Meter:
    """Examples a second since the last reading, what happens between the steps left out; and the peak of memory.

    with meter:
        ...                         # a step
        meter.num_examples += 32    # of all processes
    """

    def __init__(self, device: torch.device) -> None:
        self.num_examples = 0
        self._device = device
        self._seconds = 0.0
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds += time.perf_counter() - self._started

    def read(self) -> dict[str, float]:
        """`examples_per_second` of all processes, and `peak_memory` of this one, in bytes; then counts anew."""
        speed = self.num_examples / self._seconds if self._seconds else 0.0
        self.num_examples, self._seconds = 0, 0.0
        return {"examples_per_second": speed, "peak_memory": peak_memory(self._device)}


def peak_memory(device: torch.device) -> int:
    """The most that this process has held so far, in bytes: of the GPU, or on a CPU its resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
