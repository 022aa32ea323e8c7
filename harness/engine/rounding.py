"""How far the rounding of half precision moves what a model says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def rounded_otherwise(model: Any) -> Iterator[None]:
    """Within this context what every layer of a model gives in half precision is off by up to one rounding.

    Another order of summation, as another batch or a cache brings it, does as much. Models that take differences of
    models (``methods/whp.py``) make more of it than others, so it is measured and not assumed. Layers are the modules
    without modules of their own; every use moves them alike.
    """
    made: dict[torch.device, torch.Generator] = {}

    def moved(_module: Any, _given: Any, found: Any) -> Any:
        if not isinstance(found, Tensor) or found.dtype not in (torch.bfloat16, torch.float16):
            return None
        generator = made.setdefault(found.device, torch.Generator(found.device).manual_seed(0))
        parts = torch.rand(found.shape, generator=generator, device=found.device) * 2 - 1
        return (found.float() * (1 + parts * torch.finfo(found.dtype).eps / 2)).to(found.dtype)

    handles = [layer.register_forward_hook(moved) for layer in model.modules() if not any(layer.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
