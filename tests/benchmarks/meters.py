"""Clocks and memory, read the same way in both trainers' processes. Standard library and torch."""

import ctypes
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

PEAK_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # edges of square matrices


class Meter:
    """Marks the end of each optimizer step; memory is the peak since `start`."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        give_back()
        self.before = status("VmRSS")  # after imports, before any model
        self.marks: list[tuple[float, float]] = []
        self.held = self.peak = 0.0

    def start(self) -> None:
        """Just before the first step."""
        give_back()
        self.held = status("VmRSS") - self.before
        self.marks = [(time.process_time(), time.perf_counter())]
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM is counted anew

    def mark(self) -> None:
        """A step has ended."""
        if self.cuda:
            torch.cuda.synchronize()
        self.marks.append((time.process_time(), time.perf_counter()))
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.peak = status("VmHWM") - self.before

    def result(self, warmup: int) -> dict[str, Any]:
        """Seconds of all steps after the first `warmup` ones, and the peak in MiB.

        On the CPU both memories are over what the imports took; on a GPU the first is the CPU's.
        """
        (cpu, wall), (cpu_end, wall_end) = self.marks[warmup], self.marks[-1]
        return {
            "steps": len(self.marks) - 1 - warmup,
            "cpu_s": cpu_end - cpu,
            "wall_s": wall_end - wall,
            "cpu_s_by_step": [b[0] - a[0] for a, b in pairwise(self.marks)],
            "memory_mb": self.peak,
            "memory_before_training_mb": self.held,
        }


def give_back() -> None:
    """Return freed memory to the system, so that it is not counted as used."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def status(name: str) -> float:
    """A memory figure of this process in MiB, from /proc (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def matmul_peak(dtype: torch.dtype = torch.float32, *, repeats: int = 5) -> float:
    """The most operations a second that a large linear layer reaches here, best of `repeats`.

    By CPU time on the CPU, by wall time on a GPU.
    """
    cuda = torch.cuda.is_available()
    best = 0.0
    for size in PEAK_SIZES["cuda" if cuda else "cpu"]:
        values = torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
        functional.linear(values, values)
        for _ in range(repeats):
            began = _seconds(cuda)
            functional.linear(values, values)
            best = max(best, 2 * size**3 / (_seconds(cuda) - began))
    return best


def _seconds(cuda: bool) -> float:
    if not cuda:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
