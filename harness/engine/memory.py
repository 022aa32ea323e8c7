"""What work takes in memory: the peak of each stage, and smaller pieces where a device has too little."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from .._compat import give_back_memory, reset_peak_memory
from .counters import Counters

T = TypeVar("T")
SMALLEST = 64
"""Work is cut into this many pieces at most before a lack of memory is an error."""


def in_pieces(attempt: Callable[[int], T], counters: Counters) -> T:
    """``attempt(1)``, and where the device runs out of memory again in 2, 4, … pieces.

    What an attempt had finished before is its own to remember.

    Raises:
        torch.OutOfMemoryError, RuntimeError: the smallest pieces are too large.
    """
    pieces = 1
    while True:
        try:
            found = attempt(pieces)
            if pieces > 1:
                counters.count("lack of memory", f"{pieces} pieces")
            return found
        except Exception as error:
            if pieces >= SMALLEST or not lacks_memory(error):
                raise
        # Outside the handler: the error's traceback holds the tensors of the failed attempt.
        pieces *= 2
        release()


# How allocators say it that raise a plain RuntimeError: those of CPUs and of Apple's GPUs, and cuBLAS.
LACKS = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LACKS)


def release() -> None:
    """Give back what allocators keep for later; otherwise it is counted in the next stage's peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_memory()


class Peaks:
    """The most memory that each stage of a process took, in bytes: resident, and on the device where there is one."""

    def __init__(self) -> None:
        self.resident: dict[str, int] = {}
        self.device: dict[str, int] = {}

    @contextlib.contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Measure a block; on systems that cannot reset a process's peak, it is the peak since its start."""
        reset_peak_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        finally:
            self.resident[name] = peak_resident()
            if device.type == "cuda":
                self.device[name] = torch.cuda.max_memory_allocated(device)


def peak_resident() -> int:
    """The most resident memory of this process, in bytes, since its start or since a stage began."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.split("\n") if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
