"""Wall time, processor time and memory of each stage of a cell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..engine.memory import Peaks


class StageMeter:
    """Measures blocks by name: ``with meter("unlearn"): …``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.peaks = Peaks()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        # Who follows a run reads in its log what it is at.
        print(f"stage: {stage}", flush=True)
        began, busy = time.perf_counter(), time.process_time()
        try:
            with self.peaks.stage(stage, self.device):
                yield
        finally:
            self.seconds[stage] = time.perf_counter() - began
            self.cpu_seconds[stage] = time.process_time() - busy
